from tests.support.children import without_peft  # noqa: F401 (a fixture)
