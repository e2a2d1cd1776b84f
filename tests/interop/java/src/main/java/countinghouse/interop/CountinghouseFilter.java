package countinghouse.interop;

import java.util.HashMap;
import java.util.Map;
import org.apache.dubbo.rpc.BaseFilter;
import org.apache.dubbo.rpc.Filter;
import org.apache.dubbo.rpc.Invocation;
import org.apache.dubbo.rpc.Invoker;
import org.apache.dubbo.rpc.Result;
import org.apache.dubbo.rpc.StatusRpcException;

/**
 * In: our token, as the attachment {@code authorization}. Out: refusals, as {@link Refused}.
 *
 * <p>Dubbo reads google.rpc.Status and keeps code and message only, so the reason is taken from the trailer
 * {@code x-reason}. A refusal is no RpcException any more: Dubbo would repeat that, and a refusal does not change.
 * UNAVAILABLE stays one, for another instance may do better.
 */
public final class CountinghouseFilter implements Filter, BaseFilter.Listener {
    /** Attachment of a response: the address of the instance that gave it. */
    static final String SERVED_BY = "served-by";

    @Override
    public Result invoke(Invoker<?> invoker, Invocation invocation) {
        invocation.setAttachment("authorization", "Bearer " + System.getenv("INTEROP_TOKEN"));
        return invoker.invoke(invocation);
    }

    @Override
    public void onResponse(Result result, Invoker<?> invoker, Invocation invocation) {
        Map<String, Object> attachments = new HashMap<>(result.getObjectAttachments());
        attachments.put(SERVED_BY, invoker.getUrl().getAddress());
        result.setObjectAttachments(attachments);
        String reason = result.getAttachment("x-reason");
        if (reason != null && result.getException() instanceof StatusRpcException error) {
            String code = error.getStatus().code.name();
            if (!code.equals("UNAVAILABLE")) {
                result.setException(new Refused(code, reason, error.getStatus().description));
            }
        }
    }

    @Override
    public void onError(Throwable error, Invoker<?> invoker, Invocation invocation) {
        // No answer came; Dubbo's cluster decides what to do.
    }
}
