"""How many steps an optimizer needs to reach the loss that another one reaches; `python -m benchmarks.convergence`."""
