"""What the project claims for CPUs, measured by `longseq bench` and held against the claims; exits 1 if one is missed.

Run as a script: python tests/benchmarks/bench_cpu.py [mamba] [step] [growth] [--output folder]

  mamba    forward of four layers at least 10 times as fast as transformers' without its CUDA kernels (B1 L4096 D256), and
           forward + backward (L512, where the peer's still ends soon) in at most a fifth of its memory
  step     a step after 10,000 tokens costs less than 1.1 times a step after 10
  growth   the cost of sub-quadratic backbones grows from 1k to 64k positions with an exponent below 1.15

Speed is wall time on all threads: other work on the machine falsifies it. Growth is processor time of one thread.
"""

import argparse
import csv
import re
from pathlib import Path

from longseq.pipelines import bench
from longseq.registry import backbone_info

Rows = list[dict[str, str]]


def rows(arguments: list[str], path: Path) -> Rows:
    """The table of one run of the verb."""
    bench.run([*arguments, "trainer=cpu", f"output={path}"])
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_mamba(folder: Path) -> list[str]:
    found = {
        (row["what"], row["implementation"]): row for row in rows(["ops", "op=mamba", "budget_s=20"], folder / "mamba.csv")
    }
    times = [float(found["mamba", name]["forward_ms"]) for name in ("transformers", "longseq")]
    memory = [float(found["mamba fwd+bwd", name]["memory_mib"]) for name in ("transformers", "longseq")]
    missed = [] if times[0] >= 10 * times[1] else [f"mamba is {times[0] / times[1]:.1f} times as fast, claimed: 10"]
    return missed + ([] if memory[0] >= 5 * memory[1] else [f"its memory is 1/{memory[0] / memory[1]:.1f}, claimed: 1/5"])


def check_step(folder: Path) -> list[str]:
    missed = []
    for name in ("mamba", "mamba2", "s4d"):
        early, late = (float(row["forward_ms"]) for row in rows(["step", f"name={name}"], folder / f"step_{name}.csv"))
        if late >= 1.1 * early:
            missed.append(
                f"{name}: a step takes {late / early:.2f} times as long after 10,000 tokens as after 10, claimed: 1.1"
            )
    return missed


def check_growth(folder: Path) -> list[str]:
    missed = []
    for row in rows(["backbones"], folder / "growth.csv"):
        exponent = re.search(r"exponent ([0-9.]+)", row["note"])
        if exponent and "L^2" not in backbone_info(row["what"]).cost and float(exponent[1]) >= 1.15:
            missed.append(f"{row['what']}: cost grows with exponent {exponent[1]}, claimed: below 1.15")
    return missed


CHECKS = {"mamba": check_mamba, "step": check_step, "growth": check_growth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", default=[], choices=[*CHECKS, []])
    parser.add_argument("--output", type=Path, default=Path("benchmarks"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    missed = [line for claim in options.claims or CHECKS for line in CHECKS[claim](options.output)]
    print("\n".join(["", *missed] if missed else ["", "all claims hold"]))
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
