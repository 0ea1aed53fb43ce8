"""The embedded trainer: the main job where there is no sd-scripts and no model hub."""
