"""Markdown tables of benchmarks/tokenization.py."""

from collections.abc import Callable
from typing import Any

from .markdown import table


def report(results: dict[str, Any]) -> str:
    """Return the tables of all results."""
    machine = results.get("machine", {})
    load = " ".join(f"{value:.1f}" for value in machine.get("load", ()))
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    heading = (
        f"### {results['encoder']} encoder, {results['device']}, {results['precision']}, "
        f"{results['rows']:,} centroids\n\n"
        f"{machine.get('processor')}, {machine.get('cores')} cores, {machine.get('threads')} threads, load {load}; "
        f"Python {machine.get('python')}, {versions}."
    )
    parts = [_SECTIONS[name](found) for name, found in results["sections"].items() if found]
    return "\n\n".join((heading, *parts))


def _device(found: dict[str, Any]) -> str:
    changes = [
        (each["precision"], f"{each['tokens']:,}", f"{100 * each['changed']:.2f} %") for each in found["changes"]
    ]
    agreement = [(name, f"{value:.2g}") for name, value in found["agreement"].items()]
    stages = [(name, f"{value:.3f}") for name, value in found["stages"].items()]
    rates = [
        (
            each["way"],
            each["precision"],
            str(each["batch"]),
            f"{each['windows_per_second']:,.0f}",
            f"{10.24 * each['windows_per_second']:,.0f}",
            f"{each['tflops']:.0f}",
            f"{each['first_call_seconds']:.1f}",
        )
        for each in found["encoder"]
    ]
    return "\n\n".join(
        (
            "**Tokens of the bundled encoder that differ from fp32 on the device**",
            table(("precision", "tokens", "changed"), changes),
            "**Largest difference of features, graph against eager launches**",
            table(("precision", "difference"), agreement),
            "**Milliseconds for a batch**",
            table(("step", "ms"), stages),
            "**The encoder by itself**",
            table(("launches", "precision", "batch", "windows/s", "× real time", "TFLOP/s", "first call s"), rates),
        )
    )


def _stages(found: list[dict[str, Any]]) -> str:
    names = sorted(
        {name for each in found for name in each["stages"]}, key=lambda name: -found[0]["stages"].get(name, 0)
    )
    header = ("seconds of the run", *(f"{each['kind']}, {each['workers']} workers" for each in found))
    rows: list[tuple[str, ...]] = [(name, *(f"{each['stages'].get(name, 0):.2f}" for each in found)) for name in names]
    rows.append(("all", *(f"{each['seconds']:.2f}" for each in found)))
    rows.append(("everything except encoder and search", *(f"{100 * each['overhead']:.1f} %" for each in found)))
    rows.append(("× real time", *(f"{each['times_real_time']:,.1f}" for each in found)))
    return "**Where the time goes**\n\n" + table(header, rows)


def _bare(found: dict[str, Any]) -> str:
    seconds, cpu = found["seconds"], found["cpu_seconds"]
    rows = [
        (
            title,
            f"{1 / seconds[name]:,.2f}",
            f"{100 * seconds['bare'] / seconds[name]:.1f} %",
            f"{1e3 * cpu[name]:.1f}",
            f"{100 * cpu['bare'] / cpu[name]:.1f} %",
        )
        for name, title in (("bare", "bare model, a batch in memory"), ("whole", "sctok tokenize"))
    ]
    header = ("", "windows/s", "share", "CPU ms/window", "share of CPU")
    return f"**Compared with the bare model**\n\n{table(header, rows)}"


def _workers(found: list[dict[str, Any]]) -> str:
    rows = [(f"{each['devices']}", f"{each['workers']}", f"{each['times_real_time']:,.1f}") for each in found]
    return "**Decoding processes** (FLAC, 44.1 kHz, stereo)\n\n" + table(("encoders", "workers", "× real time"), rows)


def _lengths(found: list[dict[str, Any]]) -> str:
    rows = []
    for each in found:
        audio, windows = each["audio_seconds"], each["windows"]
        rows.append(
            (
                f"{each['files']:,} of {each['file_seconds']:g} s",
                each["padding"],
                f"{windows:,}",
                f"{each['times_real_time']:,.1f}",
                f"{1e3 * each['seconds'] / windows:.2f}",
                f"{1e3 * each['cpu_seconds'] / audio:.2f}",
                f"{1e3 * each['model_seconds'] / audio:.3f}",
                f"{1e3 * each['rest_cpu_seconds'] / audio:.3f}",
                f"{1e3 * each['rest_cpu_seconds'] / windows:.3f}",
            )
        )
    header = (
        "files",
        "padding",
        "windows",
        "× real time",
        "ms/window",
        "CPU ms/s of audio",
        "model ms/s of audio",
        "rest, CPU ms/s of audio",
        "rest, CPU ms/window",
    )
    paddings = dict.fromkeys(each["padding"] for each in found)
    ratios = "; ".join(
        f"padding {padding}: {_pace(found, padding, 'seconds')}, of CPU time {_pace(found, padding, 'cpu_seconds')}"
        for padding in paddings
    )
    ending = f"Time of a second of audio in short files, divided by that in long files: {ratios}."
    return f"**Length of files**\n\n{table(header, rows)}\n\n{ending}"


def _pace(found: list[dict[str, Any]], padding: str, what: str) -> str:
    """Return the time ratio of a second of audio in the shortest files to one in the longest."""
    rows = sorted((each for each in found if each["padding"] == padding), key=lambda each: float(each["file_seconds"]))
    short, long = (each[what] / each["audio_seconds"] for each in (rows[0], rows[-1]))
    return f"{short / long:.3f}"


def _memory(found: list[dict[str, Any]]) -> str:
    rows = [
        (f"{each['files']:,}", each["padding"], f"{each['before_mb']:,.0f}", f"{each['peak_mb']:,.0f}")
        for each in found
    ]
    header = ("files", "padding", "20 files", "all files")
    return "**Peak memory of the main process, MB**\n\n" + table(header, rows)


def _loop(found: list[dict[str, Any]]) -> str:
    rows = []
    for each in found:
        plain, ours = each["plain loop"]["times_real_time"], each["sctok"]["times_real_time"]
        rows.append((each["kind"], f"{plain:,.1f}", f"{ours:,.1f}", f"{ours / plain:.2f}"))
    return "**Compared with a plain loop over files**, × real time\n\n" + table(
        ("files", "plain loop", "sctok", "ratio"), rows
    )


def _scripts(found: dict[str, Any]) -> str:
    theirs, ours = found["scripts"], found["sctok"]
    rows = [(name, f"{theirs[name]:.1f}", f"{ours[name]:.1f}") for name in ours]
    rows.append(("all", f"{sum(theirs[name] for name in ours):.1f}", f"{sum(ours.values()):.1f}"))
    header = ("step", "three scripts, s", "sctok, s")
    return f"**Compared with three scripts** ({found['clusters']:,} clusters)\n\n" + table(header, rows)


_SECTIONS: dict[str, Callable[[Any], str]] = {
    "device": _device,
    "stages": _stages,
    "bare": _bare,
    "workers": _workers,
    "lengths": _lengths,
    "memory": _memory,
    "loop": _loop,
    "scripts": _scripts,
}
