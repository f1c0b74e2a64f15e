"""Leaves out the long tests, which only `make reliability` runs."""


def pytest_collection_modifyitems(config, items):
    if "reliability" in config.getoption("markexpr"):
        return
    long = [item for item in items if item.get_closest_marker("reliability") and not item.get_closest_marker("slow")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]
