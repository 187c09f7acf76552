#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""run-criterion against programs that fail in every way: run_criterion.py RUN-CRITERION SAMPLE EMPTY"""
import os
import subprocess
import sys

RUN, SAMPLE, EMPTY = sys.argv[1:4]
SH = ["--plain", "/bin/sh", "-c"]
# What is run, SAMPLE in its environment, and then: exit status, counts, a line that must be there.
CASES = [
    ([SAMPLE], "", 0, "passed=2 failed=0 skipped=0", ""),
    ([SAMPLE], "fail", 1, "passed=1 failed=1 skipped=0", "as asked for"),
    ([SAMPLE], "crash", 1, "passed=1 failed=1 skipped=0", ""),
    ([SAMPLE], "exit", 1, "passed=1 failed=1 skipped=0", ""),
    ([SAMPLE], "skip", 0, "passed=1 failed=0 skipped=1", "skip sample::first: no such device here"),
    ([SAMPLE], "skip-all", 77, "passed=0 failed=0 skipped=2", "skip sample::second: nor this one"),
    ([SAMPLE], "skip-silently", 1, "passed=1 failed=1 skipped=1", "without a reason"),
    ([SAMPLE], "address-report", 1, "passed=2 failed=1 skipped=0", "sanitizer reported"),
    ([SAMPLE], "leak-report", 1, "passed=2 failed=1 skipped=0", "sanitizer reported"),
    ([SAMPLE], "undefined-report", 1, "passed=2 failed=1 skipped=0", "sanitizer reported"),
    ([SAMPLE], "thread-report", 1, "passed=2 failed=1 skipped=0", "sanitizer reported"),
    ([SAMPLE, "--filter", "none/*"], "", 1, "passed=0 failed=2 skipped=2", "without a reason"),
    ([EMPTY], "", 1, "passed=0 failed=1 skipped=0", "no test ran"),
    (["/bin/true"], "", 1, "passed=0 failed=2 skipped=0", "no Criterion program"),
    (["/nonexistent"], "", 1, "passed=0 failed=1 skipped=0", "cannot run it"),
    (SH + ["exit 0"], "", 0, "passed=1 failed=0 skipped=0", ""),
    (SH + ["exit 3"], "", 1, "passed=0 failed=1 skipped=0", ""),
    (SH + ["kill -9 $$"], "", 1, "passed=0 failed=1 skipped=0", ""),
    (SH + ["echo SKIP: no tape; exit 77"], "", 77, "passed=0 failed=0 skipped=1", "skip main: no tape"),
    (SH + ["exit 77"], "", 1, "passed=0 failed=1 skipped=1", "without a reason"),
    (SH + ["echo '==1==ERROR: LeakSanitizer: x'"], "", 1, "passed=1 failed=1 skipped=0", ""),
]


def main():
    wrong = 0
    for argv, sample, status, counts, line in CASES:
        env = dict(os.environ, SAMPLE=sample)
        got = subprocess.run([RUN] + argv, env=env, stdin=subprocess.DEVNULL, timeout=60,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        last = got.stdout.splitlines()[-1] if got.stdout else ""
        if got.returncode != status or not last.endswith(": " + counts) or line not in got.stdout:
            wrong += 1
            print(f"{argv} with SAMPLE={sample}: exit status {got.returncode} instead of {status}, "
                  f"'{counts}' and '{line}' expected in:")
            # Indented and unlike the real thing, so that nobody counts it.
            print("".join(f"    | {text}\n" for text in got.stdout.replace("Sanitizer", "San.").splitlines()))
    print(f"{len(CASES) - wrong} of {len(CASES)} cases judged as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
