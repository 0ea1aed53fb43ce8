"""The network module: a LyCORIS algorithm whose directions depend on the timestep."""
