// SPDX-License-Identifier: Apache-2.0
/*
 * The one program of the Linux test guest, run as its PID 1.
 *
 * It fills most of the guest's memory with a pattern that names each page and its version, keeps
 * the expected versions in a table of their own, and then reads, checks and rewrites pages for as
 * long as the guest runs, while the machine underneath is moved. Wrong memory is what it is here to
 * notice.
 *
 * Threads: the main thread fills, then reports ten times a second and reads commands from the
 * console; `n_threads` workers do page operations. Page p belongs to worker p % n_threads and is
 * touched by no other, so that pages and versions need no lock. Workers never write to the console:
 * what they find goes through one queue per worker to the main thread, so that a slow console is
 * not taken for slow memory.
 *
 * The table could be rolled back together with the pages that it describes, and every page would
 * look right. Therefore each worker also counts its rewrites, and `verify` compares the sums.
 *
 * Limits: 4 KiB pages, 2^32 versions per page, a kernel command line of 4 KiB.
 */
#include "pattern.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MIB		 (1024ULL * 1024)
#define NSEC_PER_SEC	 1000000000ULL
#define REPORT_EVERY_NS	 (NSEC_PER_SEC / 10)
#define STALL_NS	 100000ULL
#define MAX_THREADS	 64
#define DEFAULT_SEED	 0x5eedULL
#define DEFAULT_FILL_PCT 85
/* Beyond this share of the available memory the guest would meet its own out-of-memory killer. */
#define MAX_FILL_PCT	  93
#define COLD_ONE_IN	  256 /* operations that leave the working set */
#define SEQUENTIAL_ONE_IN 4
#define REWRITE_ONE_IN	  4
#define TURN_OPS	  256 /* then a thread rests, if it is to */
#define MAX_REST_US	  100000
/* Bad pages that a worker can describe between two reports; more are only counted. */
#define BAD_QUEUE 8

struct bad_page {
	uint32_t page;
	uint32_t version;
	bool persists; /* false: a second look found the page right */
	struct pattern_mismatch mismatch;
};

struct guest;

struct worker {
	struct guest *guest;
	pthread_t thread;
	uint32_t idx;
	uint64_t random_state;
	uint64_t rewrites;     /* read by others only while this worker waits in a verify */
	uint32_t cursor;       /* next page of the sequential walk, in own pages */
	uint64_t last_done_ns; /* when the last operation ended */
	uint32_t verify_done;  /* last verify request that this worker answered */

	_Atomic uint64_t ops;
	_Atomic uint64_t stalls;
	_Atomic uint64_t stall_max_ns; /* taken and cleared by the report */
	_Atomic uint64_t bad;
	_Atomic uint64_t passes;

	_Atomic uint32_t bad_queued;  /* written by the worker */
	_Atomic uint32_t bad_printed; /* written by the main thread */
	struct bad_page bad_queue[BAD_QUEUE];
} __attribute__((aligned(128)));

struct guest {
	volatile uint64_t *memory;
	uint32_t *versions; /* expected version of each page */
	uint8_t *known_bad; /* counted already, and left as it is for whoever looks */
	uint32_t n_pages;
	uint32_t n_ws_pages; /* the working set is the first pages of the fill */
	uint32_t n_threads;
	uint64_t seed;
	uint64_t rest_ns; /* of a thread, after so many operations that a turn has */
	uint64_t start_ns;
	pthread_barrier_t filled;

	_Atomic uint32_t verify_request;
	_Atomic uint32_t verify_answers;
	_Atomic uint64_t verify_pages;
	_Atomic uint64_t verify_bad;
	_Atomic uint64_t verify_writes_found;
	_Atomic uint64_t verify_writes_done;

	struct worker workers[MAX_THREADS];
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* One write() per line: lines of the kernel may come between two of ours, but not inside one. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	char line[512];
	va_list args;
	int len;

	va_start(args, format);
	len = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	if (len < 0)
		return;
	if ((size_t)len > sizeof(line) - 2)
		len = sizeof(line) - 2;
	line[len++] = '\n';
	for (int done = 0; done < len;) {
		ssize_t n = write(STDOUT_FILENO, line + done, len - done);

		if (n < 0 && errno != EINTR)
			return;
		if (n > 0)
			done += n;
	}
}

static void __attribute__((noreturn)) power_off(void)
{
	tcdrain(STDOUT_FILENO);
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void __attribute__((noreturn)) die(const char *what)
{
	say("ferry-guest FATAL %s: %s", what, strerror(errno));
	power_off();
}

static uint64_t random_next(uint64_t *state)
{
	uint64_t x = (*state += PATTERN_MUL_NAME);

	x = (x ^ (x >> 30)) * PATTERN_MUL_WORD;
	x = (x ^ (x >> 27)) * PATTERN_STEP_WORD;
	return x ^ (x >> 31);
}

static volatile uint64_t *page_words(const struct guest *guest, uint32_t page)
{
	return guest->memory + (uint64_t)page * PATTERN_WORDS;
}

/* How many of the first @n_pages pages belong to the worker. */
static uint32_t own_pages(const struct worker *worker, uint32_t n_pages)
{
	uint32_t n_threads = worker->guest->n_threads;

	return (n_pages + n_threads - 1 - worker->idx) / n_threads;
}

static uint32_t own_page(const struct worker *worker, uint32_t own_idx)
{
	return own_idx * worker->guest->n_threads + worker->idx;
}

static void note_bad(struct worker *worker, uint32_t page)
{
	struct guest *guest = worker->guest;
	uint32_t queued = atomic_load_explicit(&worker->bad_queued, memory_order_relaxed);
	struct bad_page *bad = &worker->bad_queue[queued % BAD_QUEUE];

	if (guest->known_bad[page])
		return;
	guest->known_bad[page] = 1;
	atomic_fetch_add(&worker->bad, 1);
	if (queued - atomic_load_explicit(&worker->bad_printed, memory_order_acquire) == BAD_QUEUE)
		return;
	bad->page = page;
	bad->version = guest->versions[page];
	bad->persists = pattern_diagnose(page_words(guest, page), guest->seed, guest->n_pages, page,
					 bad->version, &bad->mismatch);
	atomic_store_explicit(&worker->bad_queued, queued + 1, memory_order_release);
}

static bool check_page(struct worker *worker, uint32_t page)
{
	struct guest *guest = worker->guest;

	if (pattern_matches(page_words(guest, page), guest->seed, page, guest->versions[page]))
		return true;
	note_bad(worker, page);
	return false;
}

/*
 * A stall is counted from the end of one operation to the end of the next, and so covers both the
 * operation and the time in which the worker wasn't run at all.
 */
static void note_time(struct worker *worker)
{
	uint64_t now = now_ns();
	uint64_t took = now - worker->last_done_ns;
	uint64_t max = atomic_load_explicit(&worker->stall_max_ns, memory_order_relaxed);

	worker->last_done_ns = now;
	if (took > STALL_NS)
		atomic_fetch_add_explicit(&worker->stalls, 1, memory_order_relaxed);
	while (took > max && !atomic_compare_exchange_weak(&worker->stall_max_ns, &max, took))
		;
}

static void operate(struct worker *worker)
{
	struct guest *guest = worker->guest;
	uint64_t dice = random_next(&worker->random_state);
	uint32_t place = dice >> 32;
	uint32_t n_own = own_pages(worker, guest->n_ws_pages);
	uint32_t own_idx;
	uint32_t page;

	if (dice % COLD_ONE_IN == 0) {
		own_idx = place % own_pages(worker, guest->n_pages);
	} else if ((dice >> 8) % SEQUENTIAL_ONE_IN == 0) {
		own_idx = worker->cursor++;
		if (worker->cursor == n_own) {
			worker->cursor = 0;
			atomic_fetch_add_explicit(&worker->passes, 1, memory_order_relaxed);
		}
	} else {
		own_idx = place % n_own;
	}
	page = own_page(worker, own_idx);

	if (check_page(worker, page) && (dice >> 16) % REWRITE_ONE_IN == 0) {
		guest->versions[page]++;
		worker->rewrites++;
		pattern_write(page_words(guest, page), guest->seed, page, guest->versions[page]);
	}
	atomic_fetch_add_explicit(&worker->ops, 1, memory_order_relaxed);
	note_time(worker);
}

static void verify_own_pages(struct worker *worker)
{
	struct guest *guest = worker->guest;
	uint32_t n_own = own_pages(worker, guest->n_pages);
	uint64_t n_bad = 0;
	uint64_t writes_found = 0;

	for (uint32_t i = 0; i < n_own; i++) {
		uint32_t page = own_page(worker, i);

		if (!check_page(worker, page))
			n_bad++;
		writes_found += guest->versions[page] - 1;
		note_time(worker);
	}
	atomic_fetch_add(&guest->verify_pages, n_own);
	atomic_fetch_add(&guest->verify_bad, n_bad);
	atomic_fetch_add(&guest->verify_writes_found, writes_found);
	atomic_fetch_add(&guest->verify_writes_done, worker->rewrites);
	atomic_fetch_add(&guest->verify_answers, 1);
}

/* That is no stall. */
static void rest(struct worker *worker)
{
	struct timespec length = {.tv_nsec = (long)worker->guest->rest_ns};

	nanosleep(&length, NULL);
	worker->last_done_ns = now_ns();
}

static void *work(void *arg)
{
	struct worker *worker = arg;
	struct guest *guest = worker->guest;
	uint32_t n_own = own_pages(worker, guest->n_pages);

	for (uint32_t i = 0; i < n_own; i++) {
		uint32_t page = own_page(worker, i);

		guest->versions[page] = 1;
		pattern_write(page_words(guest, page), guest->seed, page, 1);
	}
	pthread_barrier_wait(&guest->filled);

	worker->last_done_ns = now_ns();
	for (uint32_t turn = 1;; turn++) {
		uint32_t request = atomic_load(&guest->verify_request);

		if (request != worker->verify_done) {
			verify_own_pages(worker);
			worker->verify_done = request;
		}
		operate(worker);
		if (guest->rest_ns && turn % TURN_OPS == 0)
			rest(worker);
	}
	return NULL;
}

static const char *const verdict_names[] = {
	[PATTERN_ZERO] = "zero",
	[PATTERN_OLDER_VERSION] = "older-version",
	[PATTERN_NEWER_VERSION] = "newer-version",
	[PATTERN_OTHER_PAGE] = "other-page",
	[PATTERN_GARBAGE] = "garbage",
};

static void print_bad_page(const struct bad_page *bad)
{
	const struct pattern_mismatch *m = &bad->mismatch;

	if (!bad->persists)
		say("ferry-guest BAD page=%u expected version=%u got right on a second look",
		    bad->page, bad->version);
	else if (m->verdict == PATTERN_ZERO || m->verdict == PATTERN_GARBAGE)
		say("ferry-guest BAD page=%u expected version=%u got %s word=%llu "
		    "want=%016llx have=%016llx page_all_zero=%d",
		    bad->page, bad->version, verdict_names[m->verdict],
		    (unsigned long long)m->word_idx, (unsigned long long)m->expected,
		    (unsigned long long)m->got, m->all_zero);
	else
		say("ferry-guest BAD page=%u expected version=%u got %s word=%llu "
		    "of page=%u version=%u",
		    bad->page, bad->version, verdict_names[m->verdict],
		    (unsigned long long)m->word_idx, m->got_page, m->got_version);
}

static void print_bad_pages(struct worker *worker)
{
	uint32_t queued = atomic_load_explicit(&worker->bad_queued, memory_order_acquire);
	uint32_t printed = atomic_load_explicit(&worker->bad_printed, memory_order_relaxed);

	for (; printed != queued; printed++)
		print_bad_page(&worker->bad_queue[printed % BAD_QUEUE]);
	atomic_store_explicit(&worker->bad_printed, printed, memory_order_release);
}

static void print_report(struct guest *guest)
{
	uint64_t ops = 0, stalls = 0, bad = 0, passes = UINT64_MAX, stall_max_ns = 0;
	uint64_t t_ms = (now_ns() - guest->start_ns) / 1000000;

	for (uint32_t i = 0; i < guest->n_threads; i++) {
		struct worker *worker = &guest->workers[i];
		uint64_t worker_max = atomic_exchange(&worker->stall_max_ns, 0);
		uint64_t worker_passes = atomic_load(&worker->passes);

		print_bad_pages(worker);
		ops += atomic_load(&worker->ops);
		stalls += atomic_load(&worker->stalls);
		bad += atomic_load(&worker->bad);
		if (worker_passes < passes)
			passes = worker_passes;
		if (worker_max > stall_max_ns)
			stall_max_ns = worker_max;
	}
	say("ferry-guest t=%llu.%03llu ops=%llu stall_max_us=%llu stalls_100us=%llu bad=%llu "
	    "pass=%llu",
	    (unsigned long long)t_ms / 1000, (unsigned long long)t_ms % 1000,
	    (unsigned long long)ops, (unsigned long long)(stall_max_ns / 1000),
	    (unsigned long long)stalls, (unsigned long long)bad, (unsigned long long)passes);
}

/* Returns whether a verify was under way and is complete now. */
static bool finish_verify(struct guest *guest)
{
	uint64_t found, done;

	if (atomic_load(&guest->verify_answers) != guest->n_threads)
		return false;
	found = atomic_load(&guest->verify_writes_found);
	done = atomic_load(&guest->verify_writes_done);
	for (uint32_t i = 0; i < guest->n_threads; i++)
		print_bad_pages(&guest->workers[i]);
	say("ferry-guest verified pages=%llu bad=%llu lost_writes=%lld",
	    (unsigned long long)atomic_load(&guest->verify_pages),
	    (unsigned long long)atomic_load(&guest->verify_bad), (long long)(done - found));
	atomic_store(&guest->verify_answers, 0);
	return true;
}

static void start_verify(struct guest *guest)
{
	atomic_store(&guest->verify_pages, 0);
	atomic_store(&guest->verify_bad, 0);
	atomic_store(&guest->verify_writes_found, 0);
	atomic_store(&guest->verify_writes_done, 0);
	atomic_fetch_add(&guest->verify_request, 1);
}

struct console {
	char line[64];
	size_t len;
	bool closed;
	bool verifying;
};

static void obey(struct guest *guest, struct console *console)
{
	console->line[console->len] = '\0';
	if (!strcmp(console->line, "poweroff")) {
		say("ferry-guest poweroff");
		power_off();
	} else if (!strcmp(console->line, "verify")) {
		/* One that is under way answers for a second request as well. */
		if (!console->verifying)
			start_verify(guest);
		console->verifying = true;
	} else if (console->len) {
		say("ferry-guest unknown command; known are: verify, poweroff");
	}
	console->len = 0;
}

static void read_commands(struct guest *guest, struct console *console)
{
	char bytes[64];
	ssize_t n = read(STDIN_FILENO, bytes, sizeof(bytes));

	if (n <= 0) {
		console->closed = n == 0 || (errno != EINTR && errno != EAGAIN);
		return;
	}
	for (ssize_t i = 0; i < n; i++) {
		if (bytes[i] == '\n' || bytes[i] == '\r')
			obey(guest, console);
		else if (console->len < sizeof(console->line) - 1)
			console->line[console->len++] = bytes[i];
	}
}

static void __attribute__((noreturn)) report_for_ever(struct guest *guest)
{
	struct console console = {0};
	uint64_t next_ns = now_ns() + REPORT_EVERY_NS;

	for (;;) {
		struct pollfd pfd = {.fd = console.closed ? -1 : STDIN_FILENO, .events = POLLIN};
		uint64_t now = now_ns();
		uint64_t left_ns = now < next_ns ? next_ns - now : 0;

		if (poll(&pfd, 1, (left_ns + 999999) / 1000000) > 0)
			read_commands(guest, &console);
		if (console.verifying && finish_verify(guest))
			console.verifying = false;
		now = now_ns();
		if (now >= next_ns) {
			print_report(guest);
			/* After a long stop go on from now; don't make up for lines missed. */
			next_ns += REPORT_EVERY_NS * ((now - next_ns) / REPORT_EVERY_NS + 1);
		}
	}
}

static void mount_at(const char *type, const char *path)
{
	mkdir(path, 0755);
	/* EBUSY: the kernel has mounted its own devtmpfs. */
	if (mount(type, path, type, 0, NULL) && errno != EBUSY)
		die(path);
}

static void open_console(void)
{
	struct termios tio;
	int fd = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (!tcgetattr(fd, &tio)) {
		cfmakeraw(&tio);
		tcsetattr(fd, TCSANOW, &tio);
	}
	dup2(fd, STDIN_FILENO);
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	close(fd);
}

/* Reads a small file of proc or sys as a string, without its last newline. */
static void read_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);

	if (fd >= 0)
		close(fd);
	if (n < 0)
		die(path);
	text[n] = '\0';
	if (n && text[n - 1] == '\n')
		text[n - 1] = '\0';
}

/* The number after "@name=" on the kernel's command line, or @fallback. */
static uint64_t parameter(const char *cmdline, const char *name, uint64_t fallback)
{
	size_t len = strlen(name);

	for (const char *at = cmdline; (at = strstr(at, name)); at += len) {
		if ((at == cmdline || at[-1] == ' ') && at[len] == '=')
			return strtoull(at + len + 1, NULL, 0);
	}
	return fallback;
}

static uint64_t available_bytes(void)
{
	char text[4096];
	const char *at;

	read_text("/proc/meminfo", text, sizeof(text));
	at = strstr(text, "MemAvailable:");
	if (!at)
		die("/proc/meminfo has no MemAvailable");
	return strtoull(at + strlen("MemAvailable:"), NULL, 10) * 1024;
}

static void *map_populated(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void size_up(struct guest *guest)
{
	char cmdline[4096];
	uint64_t available = available_bytes();
	uint64_t fill, ws, most = available / 100 * MAX_FILL_PCT;

	read_text("/proc/cmdline", cmdline, sizeof(cmdline));
	fill = parameter(cmdline, "ferry.fill_mib", 0) * MIB;
	ws = parameter(cmdline, "ferry.ws_mib", 0) * MIB;
	guest->seed = parameter(cmdline, "ferry.seed", DEFAULT_SEED);
	guest->rest_ns = min_u64(parameter(cmdline, "ferry.rest_us", 0), MAX_REST_US) * 1000;
	guest->n_threads = parameter(cmdline, "ferry.threads", sysconf(_SC_NPROCESSORS_ONLN));
	if (guest->n_threads < 1 || guest->n_threads > MAX_THREADS) {
		errno = ERANGE;
		die("ferry.threads");
	}

	if (!fill)
		fill = available / 100 * DEFAULT_FILL_PCT;
	if (fill < ws)
		fill = ws;
	if (fill > most) {
		say("ferry-guest note fill of %llu MiB cut to %llu MiB, what memory allows",
		    (unsigned long long)(fill / MIB), (unsigned long long)(most / MIB));
		fill = most;
	}
	if (!ws)
		ws = fill / 3 * 2;
	guest->n_pages = fill / PATTERN_PAGE_BYTES;
	guest->n_ws_pages = min_u64(ws / PATTERN_PAGE_BYTES, guest->n_pages);
	if (guest->n_ws_pages < guest->n_threads) {
		errno = ENOMEM;
		die("fewer pages than threads");
	}
}

static void start_workers(struct guest *guest)
{
	if (pthread_barrier_init(&guest->filled, NULL, guest->n_threads + 1))
		die("pthread_barrier_init");
	for (uint32_t i = 0; i < guest->n_threads; i++) {
		struct worker *worker = &guest->workers[i];

		worker->guest = guest;
		worker->idx = i;
		worker->random_state = guest->seed ^ ((uint64_t)i << 48);
		errno = pthread_create(&worker->thread, NULL, work, worker);
		if (errno)
			die("pthread_create");
	}
	pthread_barrier_wait(&guest->filled);
}

int main(void)
{
	struct sched_param priority = {.sched_priority = 1};
	char clocksource[64];
	struct guest *guest;

	mount_at("devtmpfs", "/dev");
	open_console();
	mount_at("proc", "/proc");
	mount_at("sysfs", "/sys");

	guest = map_populated(sizeof(*guest));
	size_up(guest);
	guest->memory = map_populated((uint64_t)guest->n_pages * PATTERN_PAGE_BYTES);
	guest->versions = map_populated((uint64_t)guest->n_pages * sizeof(*guest->versions));
	guest->known_bad = map_populated(guest->n_pages);
	start_workers(guest);

	guest->start_ns = now_ns();
	read_text("/sys/devices/system/clocksource/clocksource0/current_clocksource", clocksource,
		  sizeof(clocksource));
	say("ferry-guest ready pages=%u ws_pages=%u threads=%u seed=%llu clocksource=%s",
	    guest->n_pages, guest->n_ws_pages, guest->n_threads, (unsigned long long)guest->seed,
	    clocksource);

	/* The workers leave no CPU idle; reports are to be on time all the same. */
	sched_setscheduler(0, SCHED_FIFO, &priority);
	report_for_ever(guest);
}
