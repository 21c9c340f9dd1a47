"""What is said on the worker socket, ``worker/handles.sock``: protocol version 1.

The socket is of type SOCK_SEQPACKET. One packet is one message: a JSON object in UTF-8 of at most
64 KiB whose ``type`` says which; it is read whole or the connection is at fault. A conversation,
``C`` being the worker and ``S`` the daemon::

    C: {"type": "hello", "versions": [1, 1], "software": "craftcache 0.1.0"}
    C: {"type": "load", "source": "facebook/musicgen-small", "filenames": []}
    S: {"type": "hello", "versions": [1, 1], "software": "craftcache 0.1.0"}
    S: {"type": "progress", "source": "facebook/musicgen-small", "file": "state_dict.bin",
        "done": 1048576, "total": 841000000, "state": "fetching"}          any number of these
    S: {"type": "loaded", "source": ..., "revision": ..., "files": [...]}  with the descriptors

*Versions.* Each side's hello carries the range of versions that it speaks; the highest common one
is used, and where there is none the conversation ends with a ``ProtocolMismatch``. The hello keeps
its form for ever. A client need not wait for the answer to its hello: what it sends until then is
in its own highest version. Where the common version is a lower one, the daemon drops the request
that follows the hello unread, and the client, which knows from the daemon's hello that it did,
sends it again in the common version.

*Fallbacks.* A client that has loaded without the daemon tells of it in the hello of its next
connection: ``"fallbacks": [{"reason": "silent", "served_by": "cache", "count": 2}]``. The daemon
counts them, and nothing depends on it.

*Requests.* One at a time on a connection: the next may be sent when the answer to the last was
received. ``load``, ``resolve``, ``warm``, ``status``, ``models``, ``identify`` and ``follow`` are
answered by any number of ``progress`` and then one ``loaded``, ``resolved``, ``warmed``,
``status_report``, ``models_page``, ``identified`` or ``generation``, or instead by a ``problem``:
an error of the tree as a problem document, with ``own_fault`` true where the daemon itself failed
or is overloaded, and false where the request cannot be granted whoever asks. While it works the
daemon sends a ``progress`` at least every five seconds. Closing the connection, or half of it,
withdraws the request.

*Warms.* A ``warm`` may name up to 32 sources; there is a result for each, in order, with a
``problem`` in the place of a revision where one failed. A lone source that fails may be answered
by a ``problem`` instead. Which files it is for is said by ``filenames``, by patterns of a
repository's files (``include``, ``exclude``) or by a ``lock``: a revision and each file's sha256,
other than which nothing is published. It brings what its sources need as well, unless it says
``"pair_only": true``. ``models`` lists with each model what it needs and whether that is cached,
and what it needs that no cache can hold.

*Following.* ``follow`` with the number of a watch's generation waits, however long that takes,
until another one is served. Who follows asks again with each number that it hears, so it misses
none but those that were replaced before it had asked, whichever daemon answers.

*Descriptors* come with ``loaded`` alone, by SCM_RIGHTS on the same packet, open for reading: for
each file in order its blob, then, where ``has_index`` is true, its index. No other packet carries
any, in neither direction. ``"map": "never"`` (or ``"always"``) says that workers are to read them
(or to map them) whatever file system they are on.

*GPUs.* The service of a GPU speaks the same on ``gpu/UUID.sock``: ``load``, and ``gpu`` and
``gpu_verify``, which the daemon refuses. :mod:`craftcache.wire.gpu` says what is different there.

*Parsing* is strict about what is known and blind to what is not: a missing key, a wrong type or a
value out of bounds is a WireError; unknown keys are ignored, so that later releases may add some.
"""

from .activity import Coming, Disk, NotWarm, RecentModel
from .answers import Answer, Loaded, Problem, Progress, Resolved, State, WarmedBatch, WarmedModel
from .codec import MAX_MESSAGE, decode_answer, decode_request, encode, first_page
from .fields import MAX_FILES, MAX_WARM_SOURCES, WireError
from .gpu import DescribeGpu, GpuComparison, GpuComparisons, GpuModel, GpuReport, VerifyGpu
from .hello import VERSIONS, FallbackReason, Hello, ReportedFallback, Versions
from .models import CachedModel, ModelsPage
from .request import Request
from .requests import Follow, Identify, Load, Models, Resolve, Status
from .status import DaemonStatus
from .warm import Warm, WarmBatch, WarmKeywords, WarmOptions
from .watching import Generation, Identified

__all__ = [
    "MAX_MESSAGE",
    "MAX_FILES",
    "MAX_WARM_SOURCES",
    "VERSIONS",
    "WireError",
    "Versions",
    "Hello",
    "FallbackReason",
    "ReportedFallback",
    "Load",
    "Resolve",
    "Warm",
    "WarmBatch",
    "WarmOptions",
    "WarmKeywords",
    "Status",
    "Models",
    "Identify",
    "Follow",
    "Request",
    "State",
    "Progress",
    "CachedModel",
    "Loaded",
    "Resolved",
    "WarmedModel",
    "WarmedBatch",
    "DaemonStatus",
    "Coming",
    "NotWarm",
    "RecentModel",
    "Disk",
    "ModelsPage",
    "Identified",
    "Generation",
    "DescribeGpu",
    "VerifyGpu",
    "GpuModel",
    "GpuReport",
    "GpuComparison",
    "GpuComparisons",
    "Answer",
    "Problem",
    "encode",
    "decode_request",
    "decode_answer",
    "first_page",
]
