"""Loaders on JPEGs: images a second in the first and in later epochs, seconds to the first batch, bytes on disk,
random access.

Every loader hands out uint8 batches of 64 squares of 128 x 128, cut at random out of JPEGs of 160 x 160 and flipped at
random, with two workers (the mapped pixels with one thread, and with two). One more does what recipes for ImageNet do,
which is more work: squares of random sizes, as floats, normalised. All take turns in an order drawn anew, each in a
process of its own; a ratio is taken inside a turn.

    python benchmarks/loaders.py [--images 2000] [--turns 5]

FFCV runs in the side environment `ffcv`, mosaicml-streaming and webdataset in `streams`; the result is
fsdl_tools/data/results/loaders.json.
"""

import argparse
import datetime
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE, BATCH, EPOCHS = 128, 64, 3
LOAD = os.getloadavg()[0]


def cut(picture, label):
    "Random square, random flip, channels first"
    import numpy as np

    top, left = random.randint(0, picture.shape[0] - SIZE), random.randint(0, picture.shape[1] - SIZE)
    square = picture[top : top + SIZE, left : left + SIZE]
    if random.random() < 0.5:
        square = square[:, ::-1]
    return np.ascontiguousarray(square.transpose(2, 0, 1)), label


def decode(data):
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))


def items(folder):
    "Pairs (path, class) of the JPEGs"
    return [(p, int(p.parent.name[5:])) for p in sorted((folder / 'jpegs').rglob('*.jpg'))]


# Each contender: make(folder) writes its format; open_(folder) returns (iterate one epoch: yields batches (x, y); read
# one at random, or None)


def make_dataloader(folder):
    return folder / 'jpegs'


def open_dataloader(folder):
    from torch.utils.data import DataLoader
    from fsdl_tools.training.loaders import JpegFolder

    data = JpegFolder(folder / 'jpegs', SIZE)
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    return lambda epoch: loader, lambda i: data[i]


def open_recipe(folder):
    "What recipes for ImageNet write: squares of random sizes, as floats, normalised"
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    steps = [
        transforms.RandomResizedCrop(SIZE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    data = datasets.ImageFolder(folder / 'jpegs', transforms.Compose(steps))
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    return lambda epoch: loader, lambda i: data[i]


def make_mapped(kind):
    def make(folder):
        from fsdl_tools.training.loaders import pack

        return Path(pack(folder / 'jpegs', folder / f'{kind}.pack', kind).path)

    return make


def open_mapped(kind, workers):
    def opened(folder):
        from fsdl_tools.training.loaders import Mapped, batches, steps_per_epoch

        data = Mapped(folder / f'{kind}.pack', SIZE)
        n = steps_per_epoch(len(data), BATCH)
        return lambda epoch: batches(
            data, BATCH, start=epoch * n, stop=(epoch + 1) * n, workers=workers
        ), lambda i: data.batch([i])

    return opened


def make_ffcv(mode):
    def make(folder):
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter
        from PIL import Image

        rows = items(folder)

        class Data:
            def __len__(self):
                return len(rows)

            def __getitem__(self, i):
                return Image.open(rows[i][0]).convert('RGB'), rows[i][1]

        out = folder / f'{mode}.beton'
        image = RGBImageField(write_mode=mode, jpeg_quality=90) if mode == 'jpg' else RGBImageField(write_mode=mode)
        DatasetWriter(str(out), dict(image=image, label=IntField()), num_workers=2).from_indexed_dataset(Data())
        return out

    return make


def open_ffcv(mode):
    def opened(folder):
        from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

        crop = RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=((SIZE / 160) ** 2,) * 2, ratio=(1, 1))
        pipelines = dict(
            image=[crop, RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
            label=[IntDecoder(), ToTensor(), Squeeze()],
        )
        loader = Loader(
            str(folder / f'{mode}.beton'),
            batch_size=BATCH,
            num_workers=2,
            order=OrderOption.RANDOM,
            pipelines=pipelines,
            drop_last=False,
            os_cache=True,
        )
        return lambda epoch: loader, None

    return opened


def make_streaming(folder):
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / 'mds'), columns=dict(image='bytes', label='int')) as out:
        for p, label in items(folder):
            out.write(dict(image=p.read_bytes(), label=label))
    return folder / 'mds'


def open_streaming(folder):
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    class Data(StreamingDataset):
        def __getitem__(self, i):
            row = super().__getitem__(i)
            return cut(decode(row['image']), row['label'])

    data = Data(local=str(folder / 'mds'), shuffle=True, batch_size=BATCH)
    loader = DataLoader(data, BATCH, num_workers=2, persistent_workers=True)
    return lambda epoch: loader, lambda i: data[i]


def make_webdataset(folder):
    import webdataset as wds

    (folder / 'tar').mkdir(exist_ok=True)
    with wds.ShardWriter(str(folder / 'tar' / '%04d.tar'), maxcount=250, verbose=0) as out:
        for i, (p, label) in enumerate(items(folder)):
            out.write({'__key__': f'{i:06}', 'jpg': p.read_bytes(), 'cls': label})
    return folder / 'tar'


def open_webdataset(folder):
    import webdataset as wds
    from torch.utils.data import DataLoader

    shards = sorted(str(p) for p in (folder / 'tar').glob('*.tar'))

    def row(r):
        return cut(decode(r['jpg']), int(r['cls']))

    data = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(500).map(row)
    loader = DataLoader(data, BATCH, num_workers=2, persistent_workers=True)
    return lambda epoch: loader, None


def make_parquet(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = items(folder)
    table = pa.table(dict(image=pa.array([p.read_bytes() for p, _ in rows], pa.binary()), label=[y for _, y in rows]))
    pq.write_table(table, folder / 'images.parquet', row_group_size=250, compression='none')
    return folder / 'images.parquet'


def open_parquet(folder):
    import pyarrow.parquet as pq
    from torch.utils.data import DataLoader, Dataset

    table = pq.read_table(folder / 'images.parquet', memory_map=True)
    images, labels = table['image'].combine_chunks(), table['label'].to_pylist()

    class Data(Dataset):
        def __len__(self):
            return len(labels)

        def __getitem__(self, i):
            return cut(decode(images[i].as_buffer()), labels[i])

    data = Data()
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    return lambda epoch: loader, lambda i: data[i]


RECIPE = 'DataLoader, transforms of a recipe'
CONTENDERS = {
    'DataLoader on JPEGs': (make_dataloader, open_dataloader, ''),
    RECIPE: (make_dataloader, open_recipe, ''),
    'Mapped JPEGs': (make_mapped('jpeg'), open_mapped('jpeg', 2), ''),
    'Mapped pixels (1 thread)': (make_mapped('pixels'), open_mapped('pixels', 1), ''),
    'Mapped pixels (2 threads)': (make_mapped('pixels'), open_mapped('pixels', 2), ''),
    'FFCV, JPEGs': (make_ffcv('jpg'), open_ffcv('jpg'), 'ffcv'),
    'FFCV, pixels': (make_ffcv('raw'), open_ffcv('raw'), 'ffcv'),
    'mosaicml-streaming': (make_streaming, open_streaming, 'streams'),
    'webdataset': (make_webdataset, open_webdataset, 'streams'),
    'Parquet through a DataLoader': (make_parquet, open_parquet, ''),
}


def one(name, folder, n):
    "One turn of a contender: a dict"
    import torch

    torch.set_num_threads(1)
    start = time.perf_counter()
    epoch_of, at = CONTENDERS[name][1](folder)
    begun, epochs = None, []
    for epoch in range(EPOCHS):
        t, seen = time.perf_counter(), 0
        for x, y in epoch_of(epoch):
            begun = begun or time.perf_counter() - start
            kind = torch.float32 if name == RECIPE else torch.uint8
            assert x.shape[1:] == (3, SIZE, SIZE) and x.dtype == kind, (x.shape, x.dtype)
            seen += len(y)
        assert seen == n, (name, seen, n)
        epochs.append(n / (time.perf_counter() - t))
    out = dict(start=begun, first=epochs[0], later=epochs[-1])
    if at:
        which = random.Random(0).sample(range(n), 200)
        t = time.perf_counter()
        for i in which:
            at(i)
        out['random_us'] = (time.perf_counter() - t) / 200 * 1e6
    return out


def size_of(path):
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob('*')) if p.is_file())


def call(env, *words):
    "Run this file in an environment"
    from fsdl_tools.environments import build_env

    python = build_env(env) if env else sys.executable
    r = subprocess.run(
        [str(python), __file__, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | dict(OMP_NUM_THREADS='1'),
    )
    if r.returncode:
        raise RuntimeError(f'{words}: {r.stderr[-3000:]}')
    return json.loads(r.stdout.splitlines()[-1])


def row(name, turns, base, size):
    from fsdl_tools.training.speedups import paired_ratio

    mid = lambda k: statistics.median(t[k] for t in turns) if k in turns[0] else None
    ratio = paired_ratio([1 / t['later'] for t in base], [1 / t['later'] for t in turns]).to_dict()
    return dict(
        loader=name,
        later=mid('later'),
        first=mid('first'),
        start=mid('start'),
        random_us=mid('random_us'),
        bytes=size,
        ratio=ratio,
    )


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--images', type=int, default=2000)
    p.add_argument('--turns', type=int, default=5)
    p.add_argument('--folder', default='', help='keep what was made for it here')
    p.add_argument('--add', action='store_true', help='add turns to those in the file')
    p.add_argument('--make', nargs=2)
    p.add_argument('--one', nargs=3)
    p.add_argument('--out', default=str(Path(__file__).parent.parent / 'fsdl_tools/data/results/loaders.json'))
    a = p.parse_args()
    if a.make or a.one:
        from fsdl_tools.core import fix_torchvision

        fix_torchvision()
    if a.make:
        return print(json.dumps(size_of(CONTENDERS[a.make[0]][0](Path(a.make[1])))))
    if a.one:
        return print(json.dumps(one(a.one[0], Path(a.one[1]), int(a.one[2]))))
    kept = tempfile.TemporaryDirectory(prefix='fsdl-loaders-') if not a.folder else None
    folder, out = Path(a.folder or kept.name), Path(a.out)
    sizes = prepare(folder, a.images)
    turns = json.loads(out.read_text())['turns'] if a.add and out.exists() else {name: [] for name in CONTENDERS}
    done = len(turns['DataLoader on JPEGs'])
    for t in range(done, done + a.turns):
        new = {}
        for name in random.Random(t).sample(list(CONTENDERS), len(CONTENDERS)):
            new[name] = call(CONTENDERS[name][2], '--one', name, folder, a.images)
            print(t, name, {k: round(v, 2) for k, v in new[name].items()}, file=sys.stderr, flush=True)
        for name, measured in new.items():
            turns[name].append(measured)
        if t:
            write(out, turns, sizes, a.images)
    if kept:
        kept.cleanup()


def prepare(folder, n):
    "JPEGs and every format, unless they are there; bytes by contender"
    from fsdl_tools.training.custom import _synthetic_image

    done = folder / 'sizes.json'
    if done.exists():
        return json.loads(done.read_text())
    for i in range(n):
        f = folder / 'jpegs' / f'class{i % 4}' / f'{i:05}.jpg'
        f.parent.mkdir(parents=True, exist_ok=True)
        _synthetic_image(i, 160, 0).save(f, quality=90)
    sizes = {name: call(env, '--make', name, folder) for name, (_, _, env) in CONTENDERS.items()}
    done.write_text(json.dumps(sizes))
    return sizes


def write(out, turns, sizes, n):
    base = turns['DataLoader on JPEGs']
    conditions = (
        f'batches of {BATCH}, two workers or threads unless said otherwise; {os.cpu_count()} cores,'
        f' load {LOAD:.1f} before it began; pages were in memory'
    )
    rows = [row(k, v, base, sizes[k]) for k, v in turns.items()]
    out.write_text(
        json.dumps(
            dict(
                date=datetime.date.today().isoformat(),
                images=n,
                repeats=len(base),
                conditions=conditions,
                rows=rows,
                turns=turns,
            ),
            indent=1,
        )
        + '\n'
    )


if __name__ == '__main__':
    main()
