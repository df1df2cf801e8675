"""Publish a checkpoint on the Hub: one commit, and no byte moved that is there already.

`push` takes a finished folder, `publish` a planned conversion; `plan_push` and `plan_publish` say what they would do.
"""

from ctxforge.publish.execute import Published
from ctxforge.publish.options import PushOptions
from ctxforge.publish.plan import PushPlan
from ctxforge.publish.publishing import plan_publish, plan_push, plan_source, publish, push

__all__ = ["Published", "PushOptions", "PushPlan", "plan_publish", "plan_push", "plan_source", "publish", "push"]
