#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Every call that the product makes into a library, and that can fail, is one that inject.c lets fail.

    calls.py WRAPPED... -- ARCHIVE...
"""
import re
import subprocess
import sys

# What is not led through inject.c, and why.
OTHERWISE = {
    "it has no failure, or none with arguments such as ours": """
        _exit exit __assert_fail __errno_location __tls_get_addr _GLOBAL_OFFSET_TABLE_ __popcountdi2
        clock_gettime getenv geteuid getpid gettid getpagesize getrlimit64 sysconf prctl alarm pause
        closedir dirfd feof ferror freeaddrinfo gai_strerror gmtime_r inet_pton io_uring_queue_exit
        pthread_attr_destroy pthread_attr_init pthread_attr_setstacksize pthread_cond_broadcast
        pthread_cond_destroy pthread_cond_init pthread_cond_signal pthread_cond_timedwait pthread_cond_wait
        pthread_join pthread_mutex_destroy pthread_mutex_init pthread_mutex_lock pthread_mutex_trylock
        pthread_mutex_unlock pthread_sigmask sem_destroy sem_init sem_post sched_yield
        sigaction sigaddset sigemptyset sigfillset signal sigprocmask""",
    "it is text, numbers or bytes in memory": """
        memchr memcmp memcpy memmem memmove memset snprintf vsnprintf strchr strcmp strcpy strcspn strerror
        strftime strlen strncmp strrchr strspn strstr strtol strtoul strtoull __isoc99_sscanf qsort
        fmax fmin log log10 pow""",
    "nothing follows from its failure: what is done about time, an end or a hint is done later, or by others": """
        nanosleep usleep kill shutdown rmdir posix_fadvise64""",
    "it is a count in the kernel, and read() and write() of it are not let fail either": "eventfd_read eventfd_write",
    "only 'pageferry probe' makes it, and says what it gets": "pipe mremap __isoc99_fscanf",
}
# Of libraries whose allocations fail in place of their functions, or that have none.
LIBRARIES = r"(ASN1|BIO|ERR|EVP|OPENSSL|PEM|SSL|TLS|X509|json|protobuf_c|XXH3|ferry|pageferry)_?|__(asan|ubsan|tsan|sanitizer)_"


def symbols(archives, *options):
    out = subprocess.run(["nm", "-P", *options, *archives], check=True, text=True, stdout=subprocess.PIPE).stdout
    return {line.split()[0] for line in out.splitlines() if len(line.split()) > 1}


def main():
    split = sys.argv.index("--")
    wrapped, archives = set(sys.argv[1:split]), sys.argv[split + 1 :]
    made = symbols(archives, "-u") - symbols(archives, "--defined-only")
    otherwise = {name for names in OTHERWISE.values() for name in names.split()}
    unknown = {name for name in made - wrapped - otherwise if not re.match(LIBRARIES, name)}
    for name in sorted(unknown):
        print(f"{name}: nothing lets it fail; add it to inject.h, inject.c and meson.build, or say here why not")
    for name in sorted(otherwise & wrapped):
        print(f"{name}: it is let fail, and said not to be")
    # Fewer would mean that nothing was looked at.
    print(f"{len(made & wrapped)} calls are let fail, {len(made & otherwise)} are not")
    return 1 if unknown or otherwise & wrapped or len(made & wrapped) < 50 else 0


sys.exit(main())
