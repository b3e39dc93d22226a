"""Measurement: order and percentiles of timings, and peak memory on calls whose peak is known."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F

from mvit_kernels import measure
from mvit_kernels.measure import MIB, Spread, Timings, kept_for_backward, peak_extra_memory, time_alternating

MIB_OF_FLOATS = MIB // 4


def test_calls_alternate_and_warm_up_is_not_sampled():
    order = []
    timings = time_alternating({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warmup=2)
    assert order == ["a", "b"] * 5
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"a": 3, "b": 3}


def test_progress_is_called_after_every_call():
    calls = []
    time_alternating({"a": int, "b": int, "c": int}, repeats=2, warmup=1, progress=lambda: calls.append(None))
    assert len(calls) == 9


def test_elapsed_time_is_that_of_the_call_alone(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def call(seconds):
        clock[0] += seconds

    def progress():
        clock[0] += 100

    timings = time_alternating(
        {"slow": lambda: call(2.0), "fast": lambda: call(0.5)}, repeats=2, warmup=1, progress=progress
    )
    assert timings.seconds == {"slow": [2.0, 2.0], "fast": [0.5, 0.5]}


def test_garbage_collection_is_off_while_timing_and_back_after():
    states = []
    time_alternating({"a": lambda: states.append(gc.isenabled())}, repeats=1, warmup=0)
    assert states == [False]
    assert gc.isenabled()


def test_garbage_collection_is_back_after_a_failure():
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        time_alternating({"a": fail})
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"calls": {}}, "calls is empty"),
        ({"calls": {"a": int}, "repeats": 0}, "repeats is 0"),
        ({"calls": {"a": int}, "warmup": -1}, "warmup is -1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^time_alternating: {message}"):
        time_alternating(**arguments)


def test_spread_interpolates_percentiles():
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0, 0.0]) == Spread(median=2.5, p20=1.0, p80=4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_speedup_is_the_spread_of_ratios_within_rounds():
    timings = Timings({"eager": [2.0, 30.0, 8.0], "kernel": [1.0, 10.0, 2.0]})
    assert timings.speedup("kernel", over="eager").median == 3.0


def test_peak_memory_of_one_allocation():
    assert peak_extra_memory(lambda: torch.empty(3 * MIB_OF_FLOATS)) == 3 * MIB


def test_peak_memory_counts_what_is_held_at_the_same_time():
    a = torch.ones(MIB_OF_FLOATS)
    assert peak_extra_memory(lambda: a.neg().neg().neg()) == 2 * MIB  # each needs its input, and no more

    def one_after_the_other():
        for _ in range(4):
            torch.empty(MIB_OF_FLOATS)

    assert peak_extra_memory(one_after_the_other) == MIB


def test_peak_memory_counts_what_is_released_before_the_end():
    def call():
        torch.empty(5 * MIB_OF_FLOATS)
        return torch.empty(MIB_OF_FLOATS)

    assert peak_extra_memory(call) == 5 * MIB


def test_peak_memory_leaves_out_what_was_there_before():
    held = [torch.ones(8 * MIB_OF_FLOATS)]
    a = torch.ones(MIB_OF_FLOATS)

    def call():
        held.clear()
        return a.neg()

    assert peak_extra_memory(call) == MIB


def test_peak_memory_sees_inside_operators():
    """The explicit score matrix of attention is there in one operator's temporaries and not in the other's."""
    q = torch.randn(1, 1, 1024, 64)
    scores = 1024 * 1024 * 4

    def explicit():
        return (q @ q.transpose(-1, -2)).softmax(-1) @ q

    with torch.inference_mode():
        assert peak_extra_memory(explicit) >= 2 * scores
        assert peak_extra_memory(lambda: F.scaled_dot_product_attention(q, q, q)) < scores


def test_peak_memory_of_a_backward():
    a = torch.ones(MIB_OF_FLOATS, requires_grad=True)
    peak = peak_extra_memory(lambda: torch.autograd.grad((a * a).sum(), a))
    assert 2 * MIB <= peak <= 4 * MIB


def test_peak_memory_prints_nothing(capfd):
    peak_extra_memory(lambda: torch.empty(1))
    assert capfd.readouterr() == ("", "")


def test_a_failing_call_leaves_the_profiler_off():
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        peak_extra_memory(fail)
    assert not torch.autograd._profiler_enabled()
    assert peak_extra_memory(lambda: torch.empty(MIB_OF_FLOATS)) == MIB


def test_peak_memory_refuses_a_device_it_can_not_measure():
    with pytest.raises(ValueError, match="device is meta, cpu or cuda is right"):
        peak_extra_memory(int, device="meta")


def test_kept_for_backward_counts_what_is_alive_and_not_the_result():
    a = torch.ones(MIB_OF_FLOATS, requires_grad=True)
    assert kept_for_backward(lambda: a.exp().sin()) == MIB  # what sin was given; exp keeps its own result, the same
    assert kept_for_backward(lambda: (a.exp().sin(), "and more")) == MIB
    assert kept_for_backward(lambda: a.detach().exp().sin()) == 0
    with pytest.raises(ValueError, match="device is meta, cpu or cuda is right"):
        kept_for_backward(lambda: a, device="meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_peak_memory_on_a_gpu():
    a = torch.ones(MIB_OF_FLOATS, device="cuda")
    assert peak_extra_memory(lambda: a.neg().neg().neg(), device="cuda") == 2 * MIB


def test_machine_names_what_a_figure_depends_on():
    info = measure.machine()
    assert info["cpu"]
    assert info["threads"] == torch.get_num_threads()
    assert info["torch"] == torch.__version__
    assert {"simd", "gpu", "cuda", "triton", "revision", "cores"} <= info.keys()


def test_another_clock_and_what_comes_before_a_call():
    order, clock = [], iter(range(100))
    timings = time_alternating(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        repeats=2,
        warmup=0,
        before=lambda name: order.append(f"before {name}"),
        clock=lambda: float(next(clock)),
    )
    assert order == ["before a", "a", "before b", "b"] * 2
    assert timings.seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "1000", "memory.current": "400", "memory.stat": "anon 300\ninactive_file 50"}, 650),
        ({"memory.max": "max", "memory.current": "400", "memory.stat": "inactive_file 50"}, None),
        (
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "990",
                "memory/memory.stat": "total_inactive_file 20",
            },
            30,
        ),
        ({}, None),
    ],
)
def test_a_control_groups_limit_counts(files, left, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert measure._cgroup_available(tmp_path) == left
    assert measure.available_memory() > 0
