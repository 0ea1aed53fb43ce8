"""What a loss needs of an adapter, found out by the run that trained it: a few steps that change nothing."""

EMBEDDED = "embedded"  # in the place of a trainer's script: that of `hina-kohya train`
