#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The micro-VM on KVM, wherever this runs: in a QEMU that emulates a processor with SVM.

    microvm_kvm.py MICROVM LIBPAGEFERRY INIT

The kernel is Debian's cloud kernel with its KVM modules, unpacked and not installed. One thread emulates both
processors: with one for each, on a busy host, QEMU 7.2's SVM ended the micro-VM in two of 700 moves (a shutdown, or
no progress) with all of its memory as it should be, and in none of 900 so.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

TIMEOUT_S = 400
MEMORY = "1500M"
CASES = [
    "--cpu kvm --memory 16M --moves 1 --ops 300 --workload random",
    "--cpu auto --memory 16M --moves 2 --ops 300 --workload writes --vcpus 2",
    "--cpu kvm --memory 16M --moves 1 --ops 300 --workload sequential --backing memfd",
    "--cpu kvm-irqchip --memory 16M --moves 1 --ops 300 --workload hot",
]


class Skip(Exception):
    pass


def output(*argv, **how):
    return subprocess.run(argv, check=True, text=True, stdout=subprocess.PIPE, **how).stdout


def unpack_kernel(tmp):
    for tool in ("apt-get", "dpkg-deb", "cpio", "qemu-system-x86_64"):
        if not shutil.which(tool):
            raise Skip(f"no {tool}")
    listed = output("apt-cache", "depends", "linux-image-cloud-amd64")
    package = re.search(r"^ *Depends: (linux-image-[0-9]\S*)$", listed, re.M)
    if not package:
        raise Skip("apt knows no linux-image-cloud-amd64: run apt-get update on Debian")
    got = subprocess.run(["apt-get", "download", "-qq", package.group(1)], cwd=tmp, check=False,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    debs = [f for f in os.listdir(tmp) if f.endswith(".deb")]
    if got.returncode or not debs:
        raise Skip(f"cannot download {package.group(1)}: {got.stdout.strip()[-200:]}")
    subprocess.run(["dpkg-deb", "-x", os.path.join(tmp, debs[0]), os.path.join(tmp, "kernel")],
                   check=True)
    found = {name: os.path.join(folder, name)
             for folder, _, names in os.walk(os.path.join(tmp, "kernel")) for name in names}
    modules = [found.get(name) for name in ("irqbypass.ko", "kvm.ko", "kvm-amd.ko")]
    if not all(modules):
        raise Skip(f"{debs[0]} has no KVM modules, or not in plain files")
    return next(path for name, path in found.items() if name.startswith("vmlinuz-")), modules


def make_root(tmp, modules, microvm, library, init):
    root = os.path.join(tmp, "root")
    for folder in ("lib", "lib64"):
        os.makedirs(os.path.join(root, folder))
    shutil.copy(init, os.path.join(root, "init"))
    for file in [*modules, microvm]:
        shutil.copy(file, root)
    env = {**os.environ, "LD_LIBRARY_PATH": os.path.dirname(library)}
    for line in output("ldd", microvm, env=env).splitlines():
        path = re.search(r"(/\S+) \(0x", line)
        if path and "ld-linux" in path.group(1):
            shutil.copy(os.path.realpath(path.group(1)),
                        os.path.join(root, "lib64", os.path.basename(path.group(1))))
        elif path:
            shutil.copy(os.path.realpath(path.group(1)),
                        os.path.join(root, "lib", os.path.basename(path.group(1))))
    with open(os.path.join(root, "commands"), "w", encoding="ascii") as f:
        for i, case in enumerate(CASES):
            f.write(f"/{os.path.basename(microvm)} {case} --listen unix:/tmp/{i}\n")
    files = output("find", ".", cwd=root)
    archive = os.path.join(tmp, "initramfs")
    with open(archive, "wb") as f:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=files.encode(),
                       stdout=f, check=True)
    return archive


def main():
    microvm, library, init = map(os.path.abspath, sys.argv[1:4])
    with tempfile.TemporaryDirectory() as tmp:
        # apt downloads as a user of its own where it can.
        os.chmod(tmp, 0o755)
        try:
            kernel, modules = unpack_kernel(tmp)
        except Skip as e:
            print(f"SKIP: {e}")
            return 77
        archive = make_root(tmp, modules, microvm, library, init)
        said = subprocess.run(
            ["timeout", "-k", "5", str(TIMEOUT_S), "qemu-system-x86_64", "-accel", "tcg,thread=single",
             "-cpu", "max,+svm", "-M", "q35", "-m", MEMORY, "-smp", "2", "-nographic", "-nic", "none",
             "-no-reboot", "-kernel", kernel, "-initrd", archive,
             "-append", "console=ttyS0 panic=-1 quiet"],
            check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT).stdout.decode(errors="replace")
    print(said)
    results = re.findall(r"^RESULT (\d+)", said, re.M)
    on_kvm = said.count("guest: cpu=kvm")  # with or without interrupt controllers
    if results != ["0"] * len(CASES) or on_kvm != len(CASES):
        print(f"FAILED: {results}, {on_kvm} of {len(CASES)} on KVM")
        return 1
    return 0


sys.exit(main())
