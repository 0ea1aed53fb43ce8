"""stub"""


def summarise(plan, store):
    return {}


def markdown(*a):
    return ""
