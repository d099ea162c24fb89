"""Requests chat completions of an OpenAI-compatible server, many at once.

    server = Server("http://localhost:8000/v1", "NAME")
    bodies = [{"messages": messages, "max_tokens": 512, "temperature": 0.5}, ...]
    for i, result in complete(server, bodies):     # in the order in which the requests end
        ...                                        # result: Completion or Failure

Whatever the server or the network does wrong is a failed try with a reason. A request is tried
`retries` times more; then its result is a Failure. The text of a Completion is never empty.

The key is read from the environment variable `key_variable`, or from the file that the variable
`<key_variable>_FILE` names. It is in no error, log line or result.
"""

from grm_jax.endpoint.client import (
    Call as Call,
    EndpointError as EndpointError,
    complete as complete,
    equal_warning as equal_warning,
    models as models,
    post as post,
    post_async as post_async,
)
from grm_jax.endpoint.replies import Completion as Completion
from grm_jax.endpoint.server import (
    RANGES as RANGES,
    TRANSPORT as TRANSPORT,
    Server as Server,
    check_url as check_url,
    public as public,
    time_warning as time_warning,
)
from grm_jax.endpoint.tries import Failure as Failure
