"""The currencies of ISO 4217, how many decimals each one has, and amounts as people read them.

Source: ISO 4217 list one ("Current currency & funds code list", SIX Financial Information, the standard's maintenance
agency), as published on 2026-01-01. Codes for which the list gives no minor unit (metals, bond market units, XDR, XSU,
XUA, XTS, XXX) are left out: an amount in minor units of them has no meaning.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

_CODES_BY_DECIMALS: Final = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE "
    "CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD "
    "HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK "
    "MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD "
    "RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH "
    "USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
#: By code, the number of decimals of an amount in major units: CNY has 2, so that 1250 minor units are 12.50 CNY.
DECIMALS: Final = MappingProxyType(
    {code: count for count, codes in _CODES_BY_DECIMALS.items() for code in codes.split()}
)


def format_amount(minor_units: int, currency: str, *, sign: str = "-") -> str:
    """Return an amount as people write it: `12.50 CNY`, `1250 JPY`, `1.250 KWD`, `-0.05 CNY`.

    A code outside ISO 4217 has no known decimals; its amounts are marked, `1250 minor units of RMB`.

    Args:
        sign: `+` puts a plus before what is positive.
    """
    number = format_number(minor_units, currency, sign=sign)
    return f"{number} {currency}" if currency in DECIMALS else f"{number} minor units of {currency}"


def format_number(minor_units: int, currency: str, *, sign: str = "-") -> str:
    """Return an amount in major units without its code, for a column whose currency stands beside it.

    Minor units if the code is outside ISO 4217, as in `format_amount`.
    """
    decimals = DECIMALS.get(currency, 0)
    before = "-" if minor_units < 0 else "+" if sign == "+" and minor_units > 0 else ""
    digits = str(abs(minor_units)).rjust(decimals + 1, "0")
    return f"{before}{digits[:-decimals]}.{digits[-decimals:]}" if decimals else before + digits
