__version__ = "0.1.0"

# Written by hand. What people come for is handed on from the chapter that defines it, and loaded when it is asked for:
# a name here -> (module, name there). None of these names is the name of a module.
_offered = {
    'search_models': ('models.zoo', 'search_models'),
    'profile': ('models.profile', 'profile'),
    'ModelSpec': ('models.spec', 'ModelSpec'),
    'export': ('onnx.export', 'export'),
    'verify': ('onnx.verify', 'verify'),
    'measure_memory': ('memory.measure', 'measure'),
    'predict_memory': ('memory.predict', 'breakdown'),
    'on_ranks': ('parallel.ranks', 'on_ranks'),
    'Layout': ('parallel.layout', 'Layout'),
    'train': ('training.elastic', 'train'),
    'TrainConfig': ('training.config', 'TrainConfig'),
    'Cluster': ('compute.gpus', 'Cluster'),
    'estimate': ('compute.planner', 'estimate'),
    'plan': ('compute.choose', 'best_plan'),
    'cheapest': ('compute.choose', 'cheapest'),
    'Table': ('table', 'Table'),
}


def __dir__():
    return sorted([*globals(), *_offered])


def __getattr__(name):
    from importlib import import_module

    if name in _offered:
        module, there = _offered[name]
        return getattr(import_module(f'{__name__}.{module}'), there)
    new = _moved().get(name)
    hint = f': it is {__name__}.{new} now' if new else ''
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}{hint}')


def _moved():
    "Old name of a module -> its new one, from data/moved.csv"
    import csv
    from pathlib import Path

    with open(Path(__file__).parent / 'data' / 'moved.csv', newline='', encoding='utf-8') as f:
        return {row['old']: row['new'] for row in csv.DictReader(f) if row['kind'] == 'module'}


class _Moved:
    "The last to be asked for a module: an import of an old name fails with the new one, until version 0.3"

    @staticmethod
    def find_spec(name, path=None, target=None):
        package, _, old = name.partition('.')
        if package != __name__ or not (new := _moved().get(old)):
            return None
        raise ModuleNotFoundError(f'{name} is {__name__}.{new} now', name=f'{__name__}.{new}')


def _announce():
    import sys

    sys.meta_path.append(_Moved)


_announce()
