"""Settings a model may come with, whether from config.pbtxt or from Python: how its requests wait and join.

Names follow the fields of the Triton model configuration, times are microseconds, 0 means "no bound" as there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

TimeoutAction = Literal["reject", "delay"]


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How long and how many: what happens to a request that waits."""

    timeout_action: TimeoutAction = "reject"
    default_timeout_us: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """Joining requests into batches. Without a delay and without preferred sizes the policy is automatic."""

    max_queue_delay_us: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policies: Mapping[int, QueuePolicy] = field(default_factory=dict)

    @property
    def automatic(self) -> bool:
        """Whether nothing is fixed by hand, so that the policy may decide when to wait."""
        return self.max_queue_delay_us == 0 and not self.preferred_batch_sizes
