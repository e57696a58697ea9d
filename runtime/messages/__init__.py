"""The frames that the daemon and a worker exchange, in both directions.

Every frame is a msgspec struct, tagged by its type and sent as length-prefixed MessagePack (`runtime/child.py`). Times
are nanoseconds. The daemon chooses the `id` of a request, which every frame about the request repeats.
"""

from runtime.messages.answers import (
    Beat as Beat,
)
from runtime.messages.answers import (
    CallDelta as CallDelta,
)
from runtime.messages.answers import (
    Delta as Delta,
)
from runtime.messages.answers import (
    DeltaKind as DeltaKind,
)
from runtime.messages.answers import (
    Drafts as Drafts,
)
from runtime.messages.answers import (
    Failed as Failed,
)
from runtime.messages.answers import (
    Finished as Finished,
)
from runtime.messages.answers import (
    FinishReason as FinishReason,
)
from runtime.messages.answers import (
    FromWorker as FromWorker,
)
from runtime.messages.answers import (
    Ready as Ready,
)
from runtime.messages.answers import (
    Started as Started,
)
from runtime.messages.answers import (
    TokenLogprob as TokenLogprob,
)
from runtime.messages.answers import (
    Tokens as Tokens,
)
from runtime.messages.answers import (
    Vectors as Vectors,
)
from runtime.messages.requests import (
    Adapter as Adapter,
)
from runtime.messages.requests import (
    AdapterSet as AdapterSet,
)
from runtime.messages.requests import (
    CacheConfig as CacheConfig,
)
from runtime.messages.requests import (
    Cancel as Cancel,
)
from runtime.messages.requests import (
    Embed as Embed,
)
from runtime.messages.requests import (
    Grammar as Grammar,
)
from runtime.messages.requests import (
    Load as Load,
)
from runtime.messages.requests import (
    Rank as Rank,
)
from runtime.messages.requests import (
    Shutdown as Shutdown,
)
from runtime.messages.requests import (
    Submit as Submit,
)
from runtime.messages.requests import (
    Tokenize as Tokenize,
)
from runtime.messages.requests import (
    ToWorker as ToWorker,
)
from runtime.messages.requests import (
    Turns as Turns,
)
from runtime.messages.requests import (
    texts_of as texts_of,
)
