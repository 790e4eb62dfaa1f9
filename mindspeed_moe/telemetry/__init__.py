"""Expert load that one can see, from counts that are on the host anyway: no kernel, copy, wait or collective more.

Flow: a plan is published -> it is kept with its layer -> an optimizer steps -> a queue -> sums, records, writers, in a
thread of their own. What fails behind the queue never reaches training.

For launch scripts: `subscribe` has a callable called with every record, `set_step` numbers the step that is under way.
"""

from mindspeed_moe.telemetry.public import set_step, subscribe

__all__ = ["set_step", "subscribe"]
