"Offers, price files, restarts, and the lecture's arithmetic"

import csv, datetime, json, math, random, time
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from fsdl_tools.core import read_data
from fsdl_tools.compute.cost import (
    Experiment,
    Offer,
    price_age,
    _benchmark_seconds,
    _best_interval,
    cost,
    cost_table,
    experiments,
    frontier,
    priced,
    prices,
    rank_correlation,
    read_prices,
    seconds_of,
    task_named,
    transformer_seconds,
    upheld,
    with_restarts,
)
from fsdl_tools.compute.gpus import find, gpus
from fsdl_tools.compute.measured import suites

HEAD = 'provider,gpu,gpus,usd_per_hour'
offer = Offer('AWS', 'A100 40GB', 8, 32.77)


def write(path, text):
    path.write_text(text, encoding='utf-8')
    return path


def test_every_price_has_source_and_date():
    ps = prices()
    assert len(ps) > 400 and all(p.source and p.date for p in ps)
    assert all(0.02 < p.per_gpu < 15 for p in ps), [p for p in ps if not 0.02 < p.per_gpu < 15]
    assert {p.date[:4] for p in ps} == {'2022', '2023', '2026'}
    for name in ('Paperspace', 'CoreWeave', 'Lambda', 'AWS', 'GCP', 'Azure'):
        assert prices(provider=name), name
    for name in ('AWS', 'GCP', 'Azure'):
        assert prices('2026', provider=name), f'no price of 2026 from {name}'
    assert len(
        {(p.provider, p.gpu, p.gpus, p.tier, p.instance, p.region, p.date, p.usd_per_hour, p.source) for p in ps}
    ) == len(ps)


def test_spot_is_not_dearer_than_on_demand():
    on = {
        (p.provider, p.gpu, p.instance, p.gpus, p.date): p.usd_per_hour
        for p in prices(tier='on-demand')
        if p.instance and p.date < '2026'
    }
    for p in prices(tier='spot'):
        if (k := (p.provider, p.gpu, p.instance, p.gpus, p.date)) in on:
            assert p.usd_per_hour < on[k], p


def test_history_has_sources():
    rows = read_data('cloud_history.csv', text=('date',))
    assert {'Paperspace', 'CoreWeave', 'Lambda Labs', 'FSDL cloud GPU tool'} <= {r['who'] for r in rows}
    assert all(r['source'] and r['date'][:2] == '20' and r['event'] for r in rows)


def test_own_file(tmp_path):
    p = write(tmp_path / 'p.csv', '\ufeff' + HEAD + ',tier,date\n basement , rtx 3090 , 4 , 0.55 ,spot,2026-01\n')
    assert read_prices(p) == [Offer('basement', 'RTX 3090', 4, 0.55, 'spot', date='2026-01')]
    assert read_prices(str(p)) == read_prices(p)


@pytest.mark.parametrize(
    'text,msg',
    [
        ('', 'missing or doubled column provider'),
        ('\n', 'missing'),
        ('a;b;c\n', "unknown column of p.csv 'a'"),
        (HEAD + ',usd_per_hr\n', 'unknown column'),
        ('provider,gpu,gpus\nA,H100,1\n', 'missing or doubled column usd_per_hour'),
        (HEAD + ',gpu\n', 'doubled column gpu'),
        (HEAD + '\n', 'no offers'),
        (HEAD + '\nA,H100,8\n', 'line 2: has more or fewer values'),
        (HEAD + '\nA,H100,8,1,2\n', 'line 2: has more or fewer values'),
        (HEAD + '\nA,H100,8,nan\n', "line 2: usd_per_hour must be a number, not 'nan'"),
        (HEAD + '\nA,H100,8,inf\n', "must be a number, not 'inf'"),
        (HEAD + '\nA,H100,8,-1\n', 'positive and finite'),
        (HEAD + '\nA,H100,8,0\n', 'positive and finite'),
        (HEAD + '\nA,H100,8,free\n', "usd_per_hour must be a number, not 'free'"),
        (HEAD + '\nA,H100,8,"1,500"\n', 'has two readings'),
        (HEAD + '\nA,H100,0,1\n', 'gpus must be positive'),
        (HEAD + '\nA,H100,-8,1\n', "gpus must be a positive whole number, not '-8'"),
        (HEAD + '\nA,H100,1.5,1\n', 'gpus must be'),
        (HEAD + '\nA,H100,,1\n', 'gpus must be'),
        (HEAD + '\n,H100,8,1\n', 'provider must not be empty'),
        (HEAD + '\nA,H100 SXN,8,1\n', "did you mean 'H100 SXM'"),
        (HEAD + '\nA,,8,1\n', 'unknown GPU'),
        (HEAD + ',tier\nA,H100,8,1,spotty\n', "unknown tier 'spotty'"),
        (HEAD + ',date\nA,H100,8,1,May 2026\n', 'date must be a date'),
        (HEAD + ',date\nA,H100,8,1,2026-13\n', 'date must be a date'),
    ],
)
def test_bad_files(tmp_path, text, msg):
    with pytest.raises(ValueError) as e:
        read_prices(write(tmp_path / 'p.csv', text))
    assert msg in str(e.value), str(e.value)
    assert len(str(e.value)) < 2500


def test_at_most_five_complaints(tmp_path):
    with pytest.raises(ValueError) as e:
        read_prices(write(tmp_path / 'p.csv', HEAD + '\nA,H100,8,x' * 100))
    assert str(e.value).count('line ') == 5 and str(e.value).endswith('…')


@pytest.mark.parametrize(
    'make',
    [
        lambda: b'\xff\xfe' + 'provider'.encode('utf-16-le') * 600_000,
        lambda: b'\x00' * 10_000_000,
        lambda: b'x' * 10_000_000,
        lambda: (HEAD + '\n').encode() + b'"' + b'a,' * 5_000_000,
        lambda: (HEAD + '\n' + 'A,H100,8,\n' * 1_000_000).encode(),
        lambda: (HEAD + '\n' + ',' * 10_000_000).encode(),
        lambda: b',' * 10_000_000,
        lambda: random.Random(0).randbytes(10_000_000),
    ],
    ids=[
        'utf-16',
        'zeros',
        'one word',
        'open quote',
        'rows without price',
        'a row of commas',
        'a header of commas',
        'noise',
    ],
)
def test_ten_malformed_megabytes(tmp_path, make):
    p = tmp_path / 'p.csv'
    p.write_bytes(make())
    start = time.perf_counter()
    with pytest.raises(ValueError) as e:
        read_prices(p)
    assert 'p.csv' in str(e.value) and len(str(e.value)) < 3000 and time.perf_counter() - start < 30


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_prices(tmp_path / 'none.csv')
    with pytest.raises((IsADirectoryError, PermissionError)):
        read_prices(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused_or_read(tmp_path, noise):
    p = tmp_path / 'p.csv'
    p.write_bytes((HEAD + '\n').encode() + noise)
    try:
        assert all(isinstance(o, Offer) for o in read_prices(p))
    except ValueError as e:
        assert 'p.csv' in str(e)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([g.name for g in gpus()]), st.integers(1, 64), st.floats(0.01, 1e4)),
        min_size=1,
        max_size=20,
    )
)
def test_files_come_back(tmp_path, rows):
    p = tmp_path / 'p.csv'
    with open(p, 'w', newline='') as f:
        w = csv.writer(f)
        w.writerow(HEAD.split(','))
        w.writerows(['me', *r] for r in rows)
    assert [(o.gpu, o.gpus, o.usd_per_hour) for o in read_prices(p)] == rows


@pytest.mark.parametrize(
    'kw',
    [
        dict(provider=''),
        dict(gpu='nothing'),
        dict(gpus=0),
        dict(gpus=2.0),
        dict(usd_per_hour=0.0),
        dict(usd_per_hour=math.nan),
        dict(usd_per_hour='3'),
        dict(tier='x'),
        dict(date='yesterday'),
    ],
)
def test_offers_refuse(kw):
    with pytest.raises((ValueError, TypeError)):
        Offer(**{**dict(provider='A', gpu='H100', gpus=8, usd_per_hour=1.0), **kw})


def test_select_and_announce():
    assert {o.provider for o in prices(provider='AWS')} == {'AWS'} and prices(gpu='nvidia h100 80gb hbm3')[
        0
    ].gpu == 'H100 SXM'
    for kw in (dict(gpu='H1000'), dict(colour='red')):
        with pytest.raises(ValueError, match='unknown'):
            prices(**kw)
    day = datetime.date(2026, 5, 24)
    assert price_age(prices('2026-05', '2026-06'), day) == 'prices of May 2026, the oldest 0 days old'
    assert price_age([offer]) == 'prices without a date'
    assert price_age([Offer('A', 'H100', 1, 1.0, date='2026')], datetime.date(2026, 12, 1)).startswith(
        'stale prices of January 2026'
    )


@given(st.floats(1, 1e7), st.floats(600, 1e7), st.floats(1, 300), st.floats(1, 3000), st.floats(1.01, 10))
def test_restarts_cost_time(work, mtbf, ck, rs, k):
    t = with_restarts(work, mtbf, ck, rs)
    if math.isinf(t):
        return
    assert t > work and with_restarts(work, k * mtbf, ck, rs) < t * 1.0001
    assert with_restarts(k * work, mtbf, ck, rs) >= t


def test_restarts_limits():
    assert math.isclose(
        with_restarts(36000, 1e12, 60, 300, 3600), 36600, rel_tol=1e-3
    )  # no interruptions: work and ten checkpoints
    assert _best_interval(7200, 100) == 1200
    for bad in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError):
            with_restarts(bad, 3600)
        with pytest.raises(ValueError):
            with_restarts(3600, bad)


def test_youngs_interval_is_near_the_best():
    f = lambda t: with_restarts(1e5, 4 * 3600, 60, 300, t)
    assert f(_best_interval(4 * 3600, 60)) < 1.01 * min(f(t) for t in range(100, 6000, 50))


@given(st.floats(1, 1e8), st.floats(0.01, 1e4), st.integers(1, 64))
def test_cost_is_price_times_time(seconds, usd, n):
    e = cost(Offer('A', 'H100', n, usd), seconds)
    assert (
        math.isclose(e.dollars, seconds / 3600 * usd)
        and e.hours == e.wall_hours
        and Experiment.from_json(e.to_json()) == e
    )


def test_seconds_of():
    class Estimate:
        step_time, tokens_per_second = 2.0, 1e4

    assert seconds_of(5) == 5 and seconds_of(Estimate, steps=10) == 20 and seconds_of(Estimate, tokens=1e6) == 100
    for bad in (Estimate, None, [3600]):
        with pytest.raises(TypeError, match='steps='):
            seconds_of(bad)
    assert seconds_of(Estimate, steps='10k') == 20000 and seconds_of(Estimate, tokens='1M') == 100
    for kw in (dict(steps=-1), dict(tokens=math.nan)):
        with pytest.raises(ValueError):
            seconds_of(Estimate, **kw)


@pytest.mark.parametrize(
    'text, seconds',
    [
        ('12h', 43200),
        ('7d', 604800),
        ('90 min', 5400),
        ('1h30m', 5400),
        ('1-12:00:00', 129600),
        ('3600', 3600),
        (datetime.timedelta(hours=2), 7200),
    ],
)
def test_times_as_people_write_them(text, seconds):
    spot = Offer('A', 'H100', 1, 2.0, tier='spot')
    assert (
        seconds_of(text) == seconds
        and cost(offer, text) == cost(offer, seconds)
        and cost(spot, '20h', text, restart='5min') == cost(spot, 72000, seconds, restart=300)
    )
    assert with_restarts(text, '4h', '1min', '5 min') == with_restarts(seconds, 14400, 60, 300) and with_restarts(
        '1w', text, every='1h'
    ) == with_restarts(604800, seconds, every=3600)
    assert priced([spot, offer], lambda o: text, '12h', checkpoint='30s') == priced(
        [spot, offer], lambda o: seconds, 43200, checkpoint=30
    ) and priced([spot], lambda o: 3600) == priced([spot], lambda o: 3600, 12 * 3600)


@pytest.mark.parametrize(
    'bad, words',
    [
        ('an hour', "cannot read 'an hour' as a time: expected a number and a unit, for example '30d'"),
        ('12x', "cannot read '12x' as a time"),
        ('1:30', 'two readings'),
        ('0h', 'must be positive'),
        ('-3h', 'must be positive'),
        (math.nan, 'not a finite number'),
    ],
)
def test_times_that_cannot_be_read(bad, words):
    for f in (
        seconds_of,
        lambda t: with_restarts(t, 3600),
        lambda t: with_restarts(3600, t),
        lambda t: cost(offer, t),
        lambda t: cost(offer, 3600, t),
        lambda t: priced([offer], lambda o: 3600, t),
        lambda t: priced([offer], lambda o: t),
    ):
        with pytest.raises(ValueError) as e:
            f(bad)
        assert words in str(e.value)


@pytest.mark.parametrize('suite', suites)
@pytest.mark.parametrize('task', ['bert_large_squad', 'resnet50'])
def test_experiments(suite, task):
    done = experiments(prices(tier='on-demand'), task, suite=suite)
    assert [e.dollars for e in done] == sorted(e.dollars for e in done) and all(e.hours > 0 for e in done)
    twice = experiments(prices(tier='on-demand'), task, suite=suite, samples=2e6)
    once = experiments(prices(tier='on-demand'), task, suite=suite, samples=1e6)
    assert math.isclose(sum(e.dollars for e in twice), 2 * sum(e.dollars for e in once))
    edge = frontier(done)
    assert edge[-1].dollars == done[0].dollars and all(
        any(f.wall_hours <= e.wall_hours and f.dollars <= e.dollars for f in edge) for e in done
    )
    assert len(cost_table(done, 5)) == min(5, len(done)) and all(
        set(r) == {'provider', 'dearest_hour', 'dearest_experiment', 'upheld'} for r in upheld(done)
    )


def test_experiments_refuse():
    with pytest.raises(ValueError, match='measured none of these offers'):
        experiments(prices(gpu='TPU v3'))
    with pytest.raises(ValueError, match='unknown task'):
        experiments(prices(), 'resnet')
    with pytest.raises(ValueError, match='unknown suite'):
        experiments(prices(), suite='2023')
    with pytest.raises(ValueError, match='in bf16'):
        experiments(prices(), precision='bf16')
    with pytest.raises(ValueError, match='samples'):
        experiments(prices(), samples=-5)
    assert _benchmark_seconds(Offer('A', 'T4', 1, 1.0), 'resnet50', 1e6) is None


def test_priced_leaves_out_what_cannot_be_told():
    done = priced(prices('2026'), lambda o: 3600.0 if o.gpu == 'H100 SXM' else None)
    assert done and {e.offer.gpu for e in done} == {'H100 SXM'} and priced(prices('2026'), lambda o: None) == []
    with pytest.raises(ValueError, match='seconds'):
        priced([offer], lambda o: -1.0)


@given(st.floats(1e6, 1e10), st.floats(1e6, 1e12), st.floats(0.05, 1))
def test_transformer_seconds(n, t, mfu):
    one, eight = (transformer_seconds(Offer('A', 'H200', k, 1.0), n, t, mfu) for k in (1, 8))
    assert eight and (one is None or math.isclose(one, 8 * eight))
    assert transformer_seconds(Offer('A', 'V100', 8, 1.0), n, t) is None


def test_transformer_seconds_refuses():
    for bad in (dict(params=0), dict(tokens=-1), dict(mfu=math.nan)):
        with pytest.raises(ValueError):
            transformer_seconds(offer, **{**dict(params=1e9, tokens=1e9), **bad})


def test_spot_experiments_take_longer():
    on, sp = (experiments([Offer('A', 'H100', 1, 2.0, t)], 'resnet50')[0] for t in ('on-demand', 'spot'))
    assert on.hours == sp.hours and sp.wall_hours > on.wall_hours and sp.dollars > on.dollars


@pytest.mark.parametrize(
    'given,want',
    [
        (('bert-large', 'squad'), 'bert_large_squad'),
        (('BERT base', ''), 'bert_base_squad'),
        (('ResNet-50', ''), 'resnet50'),
        (('transformerxl-large', ''), 'transformerxllarge'),
    ],
)
def test_task_names(given, want):
    assert task_named(*given) == want


@pytest.mark.parametrize('given', [('bert', ''), ('gpt2', ''), ('bert-large', 'glue'), ('', '')])
def test_task_names_refused(given):
    with pytest.raises(ValueError, match='task of Lambda 2023'):
        task_named(*given)


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=30, unique=True))
def test_rank_correlation(xs):
    assert math.isclose(rank_correlation(xs, xs), 1) and math.isclose(rank_correlation(xs, [-x for x in xs]), -1)


def test_rank_correlation_agrees_with_scipy():
    scipy = pytest.importorskip('scipy.stats')
    r = random.Random(1)
    a, b = [r.randrange(10) for _ in range(50)], [r.randrange(10) for _ in range(50)]
    assert math.isclose(rank_correlation(a, b), scipy.spearmanr(a, b).statistic, rel_tol=1e-9)


def command(*args):
    "Run `fsdl` in this process"
    from fsdl_tools.cli import main as cli
    from typer.testing import CliRunner

    r = CliRunner().invoke(cli.app, list(args))
    return r.exit_code, r.stdout, r.exception


def test_cost_command(tmp_path):
    code, out, _ = command('cost', '--model', 'bert-large', '--task', 'squad', '--json', '-n', '500')
    rows = json.loads(out)
    assert (
        code == 0 and rows[0]['total'] == min(r['total'] for r in rows) and {r['tier'] for r in rows} == {'on-demand'}
    )
    own = write(tmp_path / 'p.csv', HEAD + '\nme,RTX 3090,2,0.4\n')
    code, out, _ = command('cost', '--model', 'resnet50', '--samples', '10M', '--from', str(own), '--json')
    assert code == 0 and json.loads(out)[0]['hours'] == pytest.approx(10e6 / 1751 / 3600)
    code, out, _ = command('cost', '--params', '1.3B', '--tokens', '26B', '--frontier', '--json')
    assert code == 0 and json.loads(out)[0]['hours'] == min(r['hours'] for r in json.loads(out))
    for bad in (
        ['--model', 'bert'],
        ['--suite', '2024'],
        ['--tier', 'cheap'],
        ['--provider', 'AWSS'],
        ['--gpu', 'H1000'],
        ['--within', '1s'],
        ['--samples', 'many'],
        ['--params', '7B'],
        ['--params', '900T', '--tokens', '1B'],
        ['--from', str(tmp_path / 'none.csv')],
    ):
        code, _, error = command('cost', *bad)
        assert code and isinstance(error, (ValueError, FileNotFoundError)), bad


def test_gpus_command():
    code, out, _ = command('gpus', '--memory', '140GB', '--vendor', 'NVIDIA', '--json')
    assert code == 0 and {'H200 SXM', 'B200 SXM'} <= {r['name'] for r in json.loads(out)}
    code, out, _ = command('gpus', 'H100', '--json')
    assert code == 0 and json.loads(out)['name'] == 'H100 SXM'
    for bad in (
        ['H100 SXN'],
        ['--vendor', 'Nvidea'],
        ['--memory', '4TB'],
        ['--check', '5'],
        ['V100', '--check', '100', '--precision', 'bf16'],
    ):
        code, _, error = command('gpus', *bad)
        assert code and isinstance(error, ValueError), bad


# Offers picked, and one experiment priced by either of two measures


def test_offers_are_picked_by_tier_provider_and_gpu():
    from fsdl_tools.compute.cost import pick_offers

    offers = prices('2026')
    assert pick_offers(offers) == offers
    found = pick_offers(offers, 'spot', 'AWS', 'H200')
    assert found and {(o.tier, o.provider, o.gpu) for o in found} == {('spot', 'AWS', find('H200').name)}
    assert found == [o for o in offers if (o.tier, o.provider, o.gpu) == ('spot', 'AWS', find('H200').name)]
    for wrong, said in ((dict(tier='cheap'), 'tier'), (dict(provider='Nobody'), 'provider'), (dict(gpu='G100'), 'GPU')):
        with pytest.raises(ValueError, match=f'unknown {said}'):
            pick_offers(offers, **wrong)


def test_an_experiment_is_priced_by_a_benchmark_or_by_a_size():
    from fsdl_tools.compute.cost import price_experiment

    offers = prices('2026', tier='on-demand')
    done, said = price_experiment(offers, 'bert-large', 'squad', samples='10M')
    assert (
        done == experiments(offers, 'bert_large_squad', '10M')
        and said == 'bert_large_squad, fp16, benchmarks of Lambda 2023'
    )
    done, said = price_experiment(offers, params='1.3B', tokens='26B', mfu=0.3, within='30d')
    assert done == [
        e for e in priced(offers, lambda o: transformer_seconds(o, 1.3e9, 26e9, 0.3)) if e.wall_hours <= 720
    ]
    assert said == '1.3B parameters, 26B tokens, 30% of the bf16 peak'
    assert (
        price_experiment(offers, spot_mtbf='12h')
        == price_experiment(offers, spot_mtbf=43200)
        == price_experiment(offers, suite=2023)
    )
    for wrong, why in (
        (dict(params='1B'), 'belong together'),
        (dict(params='1300B', tokens='1B'), 'can hold'),
        (dict(within='1s'), 'ends within 1s'),
        (dict(suite='2024'), 'suite'),
    ):
        with pytest.raises(ValueError, match=why):
            price_experiment(offers, **wrong)
