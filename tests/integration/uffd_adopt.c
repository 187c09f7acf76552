// SPDX-License-Identifier: Apache-2.0
/* Taking over after a crash, processes with fewer rights than ours, and who is refused. */
#include "uffd/uffd.h"

#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "uffd/kernel.h"
#include "uffd/place.h"
#include "uffd_support.h"

static uint8_t *memory; /* of the children, at the same address here */
static uint8_t *page;	/* full of 42 */

static void set_up(void)
{
	memory = map_anon(4 * PAGE);
	page = map_anon(PAGE);
	memset(page, 42, PAGE);
}

TestSuite(uffd_adopt, .init = set_up, .timeout = 60);

static int touch_when_told(int in, int out, void *arg)
{
	(void)out;
	(void)arg;
	parent_await(in);
	return memory[PAGE] == 42 ? 0 : 1;
}

/* Faults are served by another process, which is killed after it has read the first fault. */
static int attach_and_wait(int in, int out, void *arg)
{
	struct ferry_failure f = {0};
	struct ferry_uffd u;

	if (ferry_uffd_attach(&u, *(pid_t *)arg, UFFD_FEATURE_EXACT_ADDRESS, &f) < 0)
		return 1;
	if (ferry_uffd_register(&u, hva(memory), 4 * PAGE) < 0)
		return 2;
	parent_tell(out);
	next_fault(&u);
	parent_tell(out);
	parent_await(in);
	return 0;
}

Test(uffd_adopt, after_a_crash_the_waiting_guest_is_served_by_whoever_takes_over)
{
	struct child guest = child_start(touch_when_told, NULL);
	struct child first = child_start(attach_and_wait, &guest.pid);
	struct ferry_failure f = {0};
	struct ferry_placed p;
	struct ferry_uffd u;

	child_await(&first);
	child_tell(&guest);
	child_await(&first);
	cr_assert_eq(child_kill(&first), 1000 + SIGKILL);

	assert_ok(ferry_uffd_adopt(&u, guest.pid, &f), f);
	cr_assert_eq(u.pid, guest.pid);
	cr_assert_eq(u.features, UFFD_FEATURE_EXACT_ADDRESS);
	cr_assert_eq(ferry_uffd_wake(&u, hva(memory), 4 * PAGE), 0);
	cr_assert_eq(next_fault(&u), hva(memory).v + PAGE);
	cr_assert_eq(ferry_place_copy(&u, hva(memory + PAGE), page, 1, PAGE, &p), 0);
	await_state(guest.pid, 'Z');
	ferry_uffd_close(&u);
	child_expect_end(&guest);
}

static int wait_to_end(int in, int out, void *arg)
{
	(void)out;
	(void)arg;
	parent_await(in);
	return 0;
}

Test(uffd_adopt, what_was_taken_over_can_be_released)
{
	struct child c = child_start(wait_to_end, NULL);
	struct ferry_failure f = {0};
	struct ferry_uffd u;
	size_t before;

	await_syscall(c.pid, c.pid, SYS_read);
	before = count_fds(c.pid);
	assert_ok(ferry_uffd_attach(&u, c.pid, 0, &f), f);
	ferry_uffd_close(&u);
	assert_ok(ferry_uffd_adopt(&u, c.pid, &f), f);
	ferry_uffd_release(&u);
	cr_assert_eq(count_fds(c.pid), before);
	cr_assert_eq(ferry_uffd_adopt(&u, c.pid, &f), -ENOENT);
	cr_assert(strstr(f.text, "nobody attached"), "%s", f.text);
	child_tell(&c);
	child_expect_end(&c);
}

/* The attaching process may be killed before it has done UFFDIO_API. */
static int own_new_userfaultfd(int in, int out, void *arg)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	(void)arg;
	if (fd < 0 || dup(fd) < 0)
		return 1;
	parent_tell(out);
	return touch_when_told(in, out, arg);
}

Test(uffd_adopt, a_userfaultfd_that_was_never_set_up_is_set_up)
{
	struct child c = child_start(own_new_userfaultfd, NULL);
	struct ferry_failure f = {0};
	struct ferry_placed p;
	struct ferry_uffd u;

	child_await(&c);
	assert_ok(ferry_uffd_adopt(&u, c.pid, &f), f);
	cr_assert_eq(ferry_uffd_register(&u, hva(memory), 4 * PAGE), 0);
	child_tell(&c);
	next_fault(&u);
	cr_assert_eq(ferry_place_copy(&u, hva(memory + PAGE), page, 1, PAGE, &p), 0);
	child_expect_end(&c);
	ferry_uffd_close(&u);
}

Test(uffd_adopt, of_several_userfaultfds_none_is_guessed)
{
	struct child c = child_start(wait_to_end, NULL);
	struct ferry_failure f = {0};
	struct ferry_uffd a, b, u;

	assert_ok(ferry_uffd_attach(&a, c.pid, 0, &f), f);
	assert_ok(ferry_uffd_attach(&b, c.pid, 0, &f), f);
	cr_assert_eq(ferry_uffd_adopt(&u, c.pid, &f), -ENOTUNIQ);
	cr_assert(strstr(f.text, "several"), "%s", f.text);
	ferry_uffd_release(&a);
	assert_ok(ferry_uffd_adopt(&u, c.pid, &f), f);
	cr_assert_eq(u.remote_fd, b.remote_fd);
	ferry_uffd_close(&u);
	ferry_uffd_release(&b);
	child_tell(&c);
	child_expect_end(&c);
}

/* Rights of the other process. */

static int guest_without_rights(int in, int out, void *arg)
{
	(void)arg;
	drop_to_nobody();
	if (syscall(SYS_userfaultfd, O_CLOEXEC) >= 0 || errno != EPERM)
		return 70;
	parent_tell(out);
	return touch_when_told(in, out, arg);
}

Test(uffd_adopt, a_process_that_may_not_use_userfaultfd_is_lent_our_device)
{
	struct child c = child_start(guest_without_rights, NULL);
	struct ferry_failure f = {0};
	struct ferry_placed p;
	struct ferry_uffd u;
	size_t before;

	child_await(&c);
	await_syscall(c.pid, c.pid, SYS_read);
	before = count_fds(c.pid);
	assert_ok(ferry_uffd_attach(&u, c.pid, 0, &f), f);
	cr_assert_eq(count_fds(c.pid), before + 1, "it keeps the userfaultfd and nothing else");
	cr_assert_eq(ferry_uffd_register(&u, hva(memory), 4 * PAGE), 0);
	child_tell(&c);
	next_fault(&u);
	cr_assert_eq(ferry_place_copy(&u, hva(memory + PAGE), page, 1, PAGE, &p), 0);
	child_expect_end(&c);
	ferry_uffd_close(&u);
}

/* userfaultfd() kills; getpriority() says ENXIO, to see that the filter is there. */
static int guest_with_filter(int in, int out, void *arg)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpriority, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENXIO),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {.len = sizeof(code) / sizeof(code[0]), .filter = code};

	(void)arg;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0)
		return 71;
	parent_tell(out);
	parent_await(in);
	errno = 0;
	return getpriority(PRIO_PROCESS, 0) == -1 && errno == ENXIO ? 0 : 72;
}

Test(uffd_adopt, a_seccomp_filter_neither_kills_the_process_nor_is_lost)
{
	struct child c = child_start(guest_with_filter, NULL);
	struct ferry_failure f = {0};
	struct ferry_uffd u;

	child_await(&c);
	assert_ok(ferry_uffd_attach(&u, c.pid, 0, &f), f);
	ferry_uffd_release(&u);
	child_tell(&c);
	child_expect_end(&c);
}

/* A process that tries to attach, with fewer rights than this one; it sends the text of the error.
 */
struct attempt {
	pid_t pid;
	void (*drop)(void);
};

static int try_to_attach(int in, int out, void *arg)
{
	const struct attempt *a = arg;
	struct ferry_failure f = {0};
	struct ferry_uffd u;
	int r;

	(void)in;
	a->drop();
	r = ferry_uffd_attach(&u, a->pid, 0, &f);
	if (r < 0 && write(out, f.text, strlen(f.text)) < 0)
		return 1;
	return -r;
}

static void expect_attempt(pid_t pid, void (*drop)(void), int err, const char *text)
{
	struct attempt a = {pid, drop};
	struct child c = child_start(try_to_attach, &a);
	char got[FERRY_FAILURE_TEXT_MAX] = "";
	int status;

	cr_assert(read(c.from, got, sizeof(got) - 1) >= 0);
	status = child_end(&c);
	cr_assert_eq(status, err, "ended with %d: %s", status, got);
	cr_assert(strstr(got, text), "%s", got);
}

static void keep_only_ptrace(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {0};

	data[0].effective = data[0].permitted = 1u << CAP_SYS_PTRACE;
	if (syscall(SYS_capset, &head, data) < 0)
		_exit(93);
}

Test(uffd_adopt, a_seccomp_filter_that_cannot_be_suspended_is_a_refusal)
{
	struct child c = child_start(guest_with_filter, NULL);

	child_await(&c);
	expect_attempt(c.pid, keep_only_ptrace, EPERM, "-sandbox off");
	child_tell(&c);
	child_expect_end(&c);
}

Test(uffd_adopt, ptrace_is_the_only_right_that_is_needed_otherwise)
{
	struct child c = child_start(wait_to_end, NULL);

	/* The child has more rights than the one that attaches, which takes CAP_SYS_PTRACE. */
	expect_attempt(c.pid, keep_only_ptrace, 0, "");
	child_tell(&c);
	child_expect_end(&c);
}

Test(uffd_adopt, without_the_right_to_trace_the_text_says_how_to_get_it)
{
	struct child c = child_start(wait_to_end, NULL);

	expect_attempt(c.pid, drop_to_nobody, EPERM, "CAP_SYS_PTRACE");
	child_tell(&c);
	child_expect_end(&c);
}

static int trace(int in, int out, void *arg)
{
	if (ptrace(PTRACE_SEIZE, *(pid_t *)arg, NULL, NULL) < 0)
		return 1;
	parent_tell(out);
	parent_await(in);
	return 0;
}

Test(uffd_adopt, a_process_under_a_debugger_is_refused_and_the_debugger_named)
{
	struct child c = child_start(wait_to_end, NULL);
	struct child debugger = child_start(trace, &c.pid);
	struct ferry_failure f = {0};
	struct ferry_uffd u;
	char text[64];

	child_await(&debugger);
	cr_assert_eq(ferry_uffd_attach(&u, c.pid, 0, &f), -EPERM);
	snprintf(text, sizeof(text), "traced by process %d", (int)debugger.pid);
	cr_assert(strstr(f.text, text), "%s", f.text);
	cr_assert_eq(f.consequence, FERRY_REFUSE);
	child_tell(&debugger);
	child_expect_end(&debugger);
	child_tell(&c);
	child_expect_end(&c);
}

static pid_t ended_process(void)
{
	struct child c = child_start(wait_to_end, NULL);

	child_kill(&c);
	return c.pid;
}

Test(uffd_adopt, a_process_that_has_ended_is_an_error)
{
	struct ferry_failure f = {0};
	pid_t pid = ended_process();
	struct ferry_uffd u;

	cr_assert_eq(ferry_uffd_attach(&u, pid, 0, &f), -ESRCH);
	cr_assert(strstr(f.text, "no process"), "%s", f.text);
	cr_assert_eq(ferry_uffd_adopt(&u, pid, &f), -ESRCH);
}

Test(uffd_adopt, a_process_that_is_not_reaped_yet_is_an_error)
{
	struct child c = child_start(wait_to_end, NULL);
	struct ferry_failure f = {0};
	struct ferry_uffd u;

	kill(c.pid, SIGKILL);
	await_state(c.pid, 'Z');
	cr_assert_eq(ferry_uffd_attach(&u, c.pid, 0, &f), -ESRCH);
	child_end(&c);
}

Test(uffd_adopt, releasing_after_the_process_has_ended_is_fine)
{
	struct child c = child_start(wait_to_end, NULL);
	struct ferry_failure f = {0};
	struct ferry_uffd u;
	size_t before = count_fds(getpid());

	assert_ok(ferry_uffd_attach(&u, c.pid, 0, &f), f);
	child_kill(&c);
	ferry_uffd_release(&u);
	cr_assert_eq(count_fds(getpid()), before - 2, "the child's pipes are gone as well");
}

Test(uffd_adopt, our_own_number_and_nonsense_are_refused)
{
	const pid_t wrong[] = {getpid(), 0, -1};

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct ferry_failure f = {0};
		struct ferry_uffd u;

		cr_assert_eq(ferry_uffd_attach(&u, wrong[i], 0, &f), -EINVAL);
		cr_assert_eq(ferry_uffd_adopt(&u, wrong[i], &f), -EINVAL);
	}
}

static void *tell_tid(void *arg)
{
	int *ports = arg;
	pid_t tid = gettid();

	if (write(ports[1], &tid, sizeof(tid)) == sizeof(tid))
		parent_await(ports[0]);
	return NULL;
}

static int two_threads(int in, int out, void *arg)
{
	int ports[2] = {in, out};
	pthread_t t;

	(void)arg;
	pthread_create(&t, NULL, tell_tid, ports);
	pthread_join(t, NULL);
	return 0;
}

Test(uffd_adopt, the_number_of_a_thread_is_refused)
{
	struct child c = child_start(two_threads, NULL);
	struct ferry_failure f = {0};
	struct ferry_uffd u;
	pid_t tid;

	cr_assert_eq(read(c.from, &tid, sizeof(tid)), (ssize_t)sizeof(tid));
	cr_assert_eq(ferry_uffd_attach(&u, tid, 0, &f), -EINVAL);
	cr_assert(strstr(f.text, "is a thread"), "%s", f.text);
	child_tell(&c);
	child_expect_end(&c);
}

/* A whole 32-bit program: pause() for ever. */
static int run_32_bit_program(int in, int out, void *arg)
{
	static const uint8_t code[] = {0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7};
	struct {
		Elf32_Ehdr head;
		Elf32_Phdr segment;
		uint8_t code[sizeof(code)];
	} file = {
		.head = {.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS32, ELFDATA2LSB,
				     EV_CURRENT},
			 .e_type = ET_EXEC,
			 .e_machine = EM_386,
			 .e_version = EV_CURRENT,
			 .e_entry = 0x10000 + sizeof(Elf32_Ehdr) + sizeof(Elf32_Phdr),
			 .e_phoff = sizeof(Elf32_Ehdr),
			 .e_ehsize = sizeof(Elf32_Ehdr),
			 .e_phentsize = sizeof(Elf32_Phdr),
			 .e_phnum = 1},
		.segment = {.p_type = PT_LOAD,
			    .p_vaddr = 0x10000,
			    .p_filesz = sizeof(file),
			    .p_memsz = sizeof(file),
			    .p_flags = PF_R | PF_X,
			    .p_align = 4096},
	};
	int fd = memfd_create("program", MFD_CLOEXEC);

	(void)in;
	(void)arg;
	memcpy(file.code, code, sizeof(code));
	if (write(fd, &file, sizeof(file)) != sizeof(file))
		return 1;
	fexecve(fd, (char *[]){"program", NULL}, (char *[]){NULL});
	parent_tell(out);
	return 2;
}

Test(uffd_adopt, a_32_bit_process_is_refused_and_goes_on)
{
	struct child c = child_start(run_32_bit_program, NULL);
	struct ferry_failure f = {0};
	struct ferry_uffd u;
	char byte;

	/* Its ports are closed by the exec. */
	if (read(c.from, &byte, 1) != 0)
		cr_skip_test("this kernel runs no 32-bit programs");
	await_state(c.pid, 'S');
	cr_assert_eq(ferry_uffd_attach(&u, c.pid, 0, &f), -EOPNOTSUPP, "%s", f.text);
	cr_assert(strstr(f.text, "32-bit"), "%s", f.text);
	await_state(c.pid, 'S');
	cr_assert_eq(child_kill(&c), 1000 + SIGKILL);
}
