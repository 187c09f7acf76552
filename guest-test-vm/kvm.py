# SPDX-License-Identifier: Apache-2.0
"""Does KVM run an operating system here, at a processor's speed?

There are hosts, themselves virtual, whose /dev/kvm makes VMs and runs code of privilege level 3 natively, but
emulates level 0 one instruction at a time: a kernel takes hours to boot on them. So a loop of level 0 is run.
"""
import ctypes
import fcntl
import mmap
import os
import signal
import struct

KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VM = 0xAE01
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_RUN = 0xAE80
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS, KVM_SET_SREGS = 0x8138AE83, 0x4138AE84
KVM_EXIT_HLT = 5

SREGS_BYTES = 312
CS_BASE, CS_SELECTOR = 0, 12  # offsets in struct kvm_sregs
EXIT_REASON = 8               # in struct kvm_run
LOOPS = 1_000_000             # under a millisecond natively, seconds emulated
LIMIT_S = 0.25
# mov ecx, LOOPS; 1: dec ecx; jnz 1b; hlt, in real mode
CODE = b"\x66\xb9" + struct.pack("<I", LOOPS) + b"\x66\x49\x75\xfc\xf4"


class _TooSlow(Exception):
    pass


def _ring(signum, frame):
    raise _TooSlow


def _halts(vcpu, state):
    """Does it come to its hlt in time?"""
    old = signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        fcntl.ioctl(vcpu, KVM_RUN, 0)
        return struct.unpack_from("<I", state, EXIT_REASON)[0] == KVM_EXIT_HLT
    except _TooSlow:
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def runs_kernels():
    """Call it from the main thread. Takes a millisecond, or LIMIT_S."""
    fds = []
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        fds.append(kvm)
        vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
        fds.append(vm)
        with mmap.mmap(-1, mmap.PAGESIZE) as ram:
            ram.write(CODE)
            held = ctypes.c_char.from_buffer(ram)
            fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION,
                        struct.pack("<IIQQQ", 0, 0, 0, mmap.PAGESIZE, ctypes.addressof(held)))
            vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
            fds.append(vcpu)
            sregs = bytearray(SREGS_BYTES)
            fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs)
            struct.pack_into("<Q", sregs, CS_BASE, 0)
            struct.pack_into("<H", sregs, CS_SELECTOR, 0)
            fcntl.ioctl(vcpu, KVM_SET_SREGS, bytes(sregs))
            # 16 registers, rip, rflags (bit 1 is always set)
            fcntl.ioctl(vcpu, KVM_SET_REGS, struct.pack("<18Q", *[0] * 17, 2))
            with mmap.mmap(vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0)) as state:
                works = _halts(vcpu, state)
            del held  # what refers to the mapping keeps it from being closed
        return works
    except OSError:
        return False
    finally:
        for fd in reversed(fds):
            os.close(fd)
