"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"
import time

from fsdl_tools.frameworks import race, runners, task


def test_clocks_count_from_the_start_of_a_fit():
    work, began, used = task.make_task('mlp', steps=3, batch=8), time.perf_counter(), time.process_time()
    runner = runners.runners['numpy' if 'numpy' in runners.runners else 'torch'](work)
    runner.fit(work.xs, work.ys)
    assert 0 <= runner.seconds <= time.perf_counter() - began and 0 <= runner.cpu_seconds <= time.process_time() - used + .05


def test_the_first_step_of_a_race_is_timed_from_its_start():
    entry, before = race._Entry(task.make_task('mlp', steps=3, batch=8), 'torch'), race._cpu()
    entry.start()
    assert 0 <= entry.first <= race._cpu() - before + .05


def test_digits_of_a_task_are_ten_patterns():
    work = task.make_task('mlp', steps=200, batch=8)
    assert set(work.ys.flatten().tolist()) == set(range(10))
    again = task.make_task('mlp', steps=200, batch=8)
    assert (again.xs == work.xs).all() and (again.ys == work.ys).all()
