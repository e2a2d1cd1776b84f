"""Characters that mislead a reader, and how they are shown instead.

A terminal obeys C0 and C1 controls. Bidirectional overrides make text read backwards, line separators make one line
look like two, and zero-width characters make two names look like one. `ids.check_text` refuses them in new texts;
wherever text of others is printed, each is shown by its number, joiners of letters included.
"""

from __future__ import annotations

import re

#: C1 controls and DEL, format characters (bidirectional controls, zero-width blanks, the soft hyphen), line and
#: paragraph separators, letters that look like nothing, tags, and surrogates, which no encoding of Unicode takes.
_INVISIBLE = (
    "\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\ud800-\udfff"
)
#: What no name and no single line of text may hold, C0 controls included.
DECEPTIVE = re.compile(f"[\u0000-\u001f{_INVISIBLE}]")
#: What no output may hold, its own line ends, tabs and colours excepted.
_DECEPTIVE_IN_OUTPUT = re.compile(f"[\u0000-\u0008\u000b\u000c\u000e-\u001a\u001c-\u001f{_INVISIBLE}]")


def escape(text: str) -> str:
    r"""Return one line of another party's text, fit to be shown: U+202E becomes `\u202e`."""
    return DECEPTIVE.sub(_number, text)


def escape_output(text: str) -> str:
    """Return output of ours that may hold text of others; as `escape`, but line ends, tabs and ESC stay."""
    return _DECEPTIVE_IN_OUTPUT.sub(_number, text)


def escape_json(document: str) -> str:
    """Return serialized JSON that means the same and holds no such character: they occur only inside strings."""
    return _DECEPTIVE_IN_OUTPUT.sub(_json_number, document)


def _number(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_number(found: re.Match[str]) -> str:
    encoded = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{encoded[at : at + 4]}" for at in range(0, len(encoded), 4))
