"""The channel graph: one recorded forward in, channel groups out."""

from slimfast.graph.channel_graph import Axis, ChannelGraph, ChannelGroup, Constant, Frozen, Member, Operation
from slimfast.graph.propagation.user_rules import RegisteredRule, register_rule
from slimfast.graph.recording.inputs import InputSpec
from slimfast.graph.trace import trace_channels

__all__ = ["Axis", "ChannelGraph", "ChannelGroup", "Constant", "Frozen", "InputSpec", "Member", "Operation",
           "RegisteredRule", "register_rule", "trace_channels"]  # fmt: skip
