#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A running guest moves between two hosts, forth and back, over a link of limited rate.

    microvm_network.py MICROVM PAGEFERRY [--cpu auto|kvm|kvm-irqchip|native] [--memory SIZE] [--rate RATE]

The hosts are network namespaces joined by a pair of virtual Ethernet devices. The record that the target
keeps of its faults agrees with what it counted. Exits with 77 where there is no CPU of that kind.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

from microvm_support import Failed, Monitor, has_cpu



def ip(*words):
    subprocess.run(words, check=True)


class Host:
    def __init__(self, name, number, rate, options):
        self.name, self.device, self.address = name, f"{name}-eth", f"10.117.0.{number}"
        self.rate, self.options = rate, options
        ip("ip", "netns", "add", name)

    def set_up(self):
        ip("ip", "link", "set", self.device, "netns", self.name)
        self.run("ip", "address", "add", f"{self.address}/24", "dev", self.device)
        self.run("ip", "link", "set", self.device, "up")
        self.run("ip", "link", "set", "lo", "up")
        self.run("tc", "qdisc", "add", "dev", self.device, "root", "tbf", "rate", self.rate, "burst", "64kb",
                 "latency", "50ms")

    def run(self, *words):
        ip("ip", "netns", "exec", self.name, *words)

    def machine(self, program, *options):
        # The command that enters the namespace becomes the program: it has its process id.
        return Monitor("ip", "netns", "exec", self.name, program, *self.options, *options)

    def remove(self):
        subprocess.run(["ip", "netns", "delete", self.name], check=False)


def move(source, target, host):
    address = source.tell(f"serve {host.address}:0")["address"]
    target.tell(f"take {address}")
    target.tell("reach 4000")
    said = target.tell("complete")
    source.tell("complete")
    source.tell("release")
    return said


def check_trace(pageferry, path, said):
    done = subprocess.run([pageferry, "trace", "report", "--json", path], check=True, stdout=subprocess.PIPE,
                          text=True)
    report = json.loads(done.stdout.splitlines()[-1])
    faults = report["faults"]
    # A fault that the push overtook was asked for as well, and its page did not come as urgent.
    if report["lost_records"] or not report["whole"] or not 0 < int(said["urgent"]) <= faults["asked"]:
        raise Failed(f"the record of faults does not fit what was counted: {said}, {faults}")
    print(f"urgent={said['urgent']} recorded={faults}")


def shuttle(program, pageferry, hosts, folder):
    trace = os.path.join(folder, "trace")
    a, b = hosts[0].machine(program), hosts[1].machine(program, "--trace", trace)
    a.tell("boot")
    a.tell("reach 2000")
    there = move(a, b, hosts[0])
    back = move(b, a, hosts[1])
    said = a.tell("verify")
    if said["bad"] != "0":
        raise Failed(f"bad pages: {said}")
    print(there, back, a.tell("stats"), sep="\n")
    if a.end() or b.end():
        raise Failed("exit status")
    check_trace(pageferry, trace, there)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("microvm", type=os.path.abspath)
    p.add_argument("pageferry", type=os.path.abspath)
    p.add_argument("--rate", default="400mbit")
    p.add_argument("--cpu", default="auto")
    p.add_argument("--memory", default="32M")
    p.add_argument("--vcpus", default="2")
    p.add_argument("--workload", default="hot")
    args = p.parse_args()
    options = [word for key in ("cpu", "memory", "vcpus", "workload") for word in (f"--{key}", getattr(args, key))]
    if not has_cpu(args.microvm, args.cpu):
        return 77
    names = [f"ferry{os.getpid() % 100000}{x}" for x in "ab"]
    hosts = []
    with tempfile.TemporaryDirectory(prefix="ferry-net-") as folder:
        try:
            for i, name in enumerate(names):
                hosts.append(Host(name, i + 1, args.rate, options))
            ip("ip", "link", "add", hosts[0].device, "type", "veth", "peer", "name", hosts[1].device)
            for host in hosts:
                host.set_up()
            shuttle(args.microvm, args.pageferry, hosts, folder)
        except Failed as e:
            print(f"FAILED: {e}")
            return 1
        finally:
            for host in hosts:
                host.remove()
    return 0


sys.exit(main())
