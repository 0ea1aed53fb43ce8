"""Everything that meets sd-scripts and LyCORIS."""
