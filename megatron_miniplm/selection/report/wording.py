"""A rule in words."""

from megatron_miniplm.selection.difference import UNITS
from megatron_miniplm.selection.rule import Rule

_MAX_NAMES = 10


def in_words(rule: Rule) -> str:
    """One or two sentences that say what is kept."""
    by = "reference \N{MINUS SIGN} teacher" if rule.measure.is_difference else rule.measure.expression
    unit = UNITS[rule.measure.reduction]
    if rule.threshold is not None:
        what = f"Kept is every sequence with a {by} of at least {rule.threshold:g} {unit}"
    else:
        what = f"Kept are {_target(rule)}{_sampled(rule, by)}, in {unit}"
    return f"{what}. {_filters(rule)}{_weights(rule)}".strip()


def _target(rule: Rule) -> str:
    every = " of every domain" if rule.per_domain else ""
    if rule.target_tokens is not None:
        return f"{rule.target_tokens:,} tokens, shared among the domains" if every else f"{rule.target_tokens:,} tokens"
    assert rule.ratio is not None
    return f"the {100 * rule.ratio:g} % of the {rule.ratio_of}{every}"


def _sampled(rule: Rule, by: str) -> str:
    if rule.sampling == "gumbel":
        return f", sampled in proportion to exp(({by}) / {rule.temperature:g}) with seed {rule.seed}"
    return f" with the greatest {by}"


def _filters(rule: Rule) -> str:
    parts = []
    if rule.min_tokens:
        parts.append(f"sequences of fewer than {rule.min_tokens:,} tokens take no part")
    if rule.keep_domains:
        parts.append(f"only these domains take part: {_listed(rule.keep_domains)}")
    if rule.drop_domains:
        parts.append(f"these domains take no part: {_listed(rule.drop_domains)}")
    if rule.drop_negative:
        parts.append("negative differences are dropped, whatever the ratio")
    joined = "; ".join(parts)
    return f"{joined[:1].upper()}{joined[1:]}. " if parts else ""


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _weights(rule: Rule) -> str:
    if rule.weights == "none":
        return ""
    temperature = f" of temperature {rule.weight_temperature:g}" if rule.weights == "softmax" else ""
    repeated = ", and views repeat sequences by weight" if rule.repeat else ""
    return f"Weights are {rule.weights}{temperature}, at most {rule.weight_cap:g}{repeated}."
