"""Float64 references of every technique: one matrix, the paper's equations, no shortcuts, nothing of hina_kohya.

Common shape, numpy float64 in and out, arguments never modified:

- one matrix: ``Oracle(hyperparameters).step(p, g, lr) -> new p``; the first call is t = 1; state is in attributes.
- a pair:     ``Oracle(hyperparameters).step(A, B, gA, gB, lr) -> (A, B)``. Whatever one factor reads of its partner is
  the value *before* the step (Jacobi). A is LoRA down [r, n], B is LoRA up [m, r], and W = B A is [m, n].
- moments (AdamW, ADOPT) also give ``direction(g, damping=None) -> u`` (None: no update this time), so that the others
  can put their rule around a moment: ``Cautious(ADOPT()).step(p, g, lr)``.
- the bare formula of each technique is a function of the same file (``agr.agr``, ``cautious.cautious``, ...).
- ``compose.ComposedStep`` is the canonical order of them all (TECHNIQUES.md section 16).

A vector, a matrix and a convolution are the same to every one-matrix oracle: reductions run over the whole tensor.
``test_official.py`` holds them against the authors' or packaged code, ``test_invariants.py`` and
``test_compose.py`` against the papers' claims and the written order.
"""
