/* SPDX-License-Identifier: Apache-2.0 */
#include "uffd/memory_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "uffd/kernel.h"
#include "uffd/maps.h"

#define CGROUP_MAX 1024

/* The memory cgroup of a process, as /proc/PID/cgroup has it. Return: whether it could be read. */
static bool memory_cgroup(pid_t pid, char out[CGROUP_MAX])
{
	_cleanup_fclose_ FILE *file = NULL;
	char path[64], line[CGROUP_MAX];
	bool found = false;

	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)pid);
	file = fopen(path, "re");
	/* "3:memory:/path" where version 1 has the memory controller, else "0::/path". */
	while (file && fgets(line, sizeof(line), file)) {
		bool v1 = strstr(line, ":memory:");

		if (v1 || (!found && !strncmp(line, "0::", 3))) {
			snprintf(out, CGROUP_MAX, "%s", line);
			found = true;
		}
		if (v1)
			break;
	}
	return found;
}

static bool charges_alike(pid_t pid)
{
	char ours[CGROUP_MAX], theirs[CGROUP_MAX];

	if (pid == getpid())
		return true;
	return memory_cgroup(getpid(), ours) && memory_cgroup(pid, theirs) && !strcmp(ours, theirs);
}

/* Of shared memory with large pages the kernel says so in this field. Source: mm/shmem.c,
 * shmem_getattr() */
static bool has_small_pages(int fd)
{
	struct stat st;

	return !fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_blksize == FERRY_PAGE_SIZE_DEFAULT;
}

int ferry_memory_file_open(struct ferry_memory_file *out, pid_t pid, struct ferry_hva start,
			   uint64_t bytes, bool anyhow, struct ferry_failure *f)
{
	struct ferry_mapping m;
	int rc = ferry_maps_at(pid, start, bytes, &m, f);

	*out = (struct ferry_memory_file){.fd = -1};
	if (rc < 0)
		return rc;
	if (m.kind != FERRY_MAPPING_SHARED || !m.shared)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "it is not shared memory");
	if (!anyhow && !charges_alike(pid))
		return ferry_fail(f, FERRY_REFUSE, -EXDEV,
				  "process %d is in another memory cgroup than we are", (int)pid);
	out->fd = ferry_maps_open(pid, &m, O_RDWR);
	if (out->fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, out->fd, "opening %s through /proc/%d",
					m.name, (int)pid);
	if (!anyhow && !has_small_pages(out->fd)) {
		ferry_memory_file_close(out);
		return ferry_fail(f, FERRY_REFUSE, -EOPNOTSUPP, "%s may have large pages", m.name);
	}
	out->offset = m.offset + (start.v - m.start.v);
	return 0;
}

void ferry_memory_file_close(struct ferry_memory_file *m)
{
	ferry_close(TAKE_FD(m->fd));
}

int ferry_memory_file_next(const struct ferry_memory_file *m, uint64_t *from, uint64_t *to,
			   uint64_t bytes)
{
	off_t begin = lseek(m->fd, (off_t)(m->offset + *from), SEEK_DATA), end;

	if (begin < 0)
		return errno == ENXIO ? 0 : -errno;
	if ((uint64_t)begin >= m->offset + bytes)
		return 0;
	end = lseek(m->fd, begin, SEEK_HOLE);
	if (end < 0)
		return -errno;
	*from = (uint64_t)begin - m->offset;
	*to = FERRY_MIN((uint64_t)end - m->offset, bytes);
	return 1;
}

void ferry_memory_pipe_close(struct ferry_memory_pipe *p)
{
	ferry_close(TAKE_FD(p->fds[0]));
	ferry_close(TAKE_FD(p->fds[1]));
}

/* What is in the pipe goes to the file. Return: bytes, or a negative errno when none. */
static ssize_t drain(const struct ferry_memory_file *m, struct ferry_memory_pipe *p, uint64_t at,
		     size_t bytes)
{
	loff_t to = (loff_t)(m->offset + at);
	size_t done = 0;

	while (done < bytes) {
		ssize_t n = splice(p->fds[0], NULL, m->fd, &to, bytes - done, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return done ? (ssize_t)done : n ? -errno : -EIO;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

ssize_t ferry_memory_file_write(const struct ferry_memory_file *m, struct ferry_memory_pipe *p,
				uint64_t at, const void *data, size_t bytes)
{
	struct iovec v = {.iov_base = (void *)data, .iov_len = bytes};
	ssize_t n, written;

	/* Large pages can be switched on at any time. */
	if (!has_small_pages(m->fd))
		return -EOPNOTSUPP;
	if (p->fds[0] < 0 && pipe2(p->fds, O_CLOEXEC | O_NONBLOCK) < 0)
		return -EBADF;
	n = vmsplice(p->fds[1], &v, 1, 0);
	if (n <= 0)
		return n ? -errno : -EIO;
	written = drain(m, p, at, (size_t)n);
	/* What is left in the pipe must not go anywhere. */
	if (written < n)
		ferry_memory_pipe_close(p);
	if (written == -ENOSPC)
		return -ENOMEM;
	return written;
}

ssize_t ferry_memory_file_overwrite(const struct ferry_memory_file *m, uint64_t at,
				    const void *data, size_t bytes)
{
	ssize_t n;

	do
		n = pwrite(m->fd, data, bytes, (off_t)(m->offset + at));
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == ENOSPC ? -ENOMEM : -errno;
	/* The page that it stopped in is written again. */
	n -= n % FERRY_PAGE_SIZE_DEFAULT;
	return n ? n : -ENOMEM;
}

int ferry_memory_file_enlarge(const struct ferry_memory_file *m, uint64_t at)
{
	uint8_t *room = mmap(NULL, 2 * FERRY_LARGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			     0);
	uint8_t *block = room + (FERRY_LARGE_BYTES - (uintptr_t)room % FERRY_LARGE_BYTES) %
					FERRY_LARGE_BYTES;
	int rc = 0;

	if (room == MAP_FAILED)
		return -errno;
	if (mmap(block, FERRY_LARGE_BYTES, PROT_READ, MAP_SHARED | MAP_FIXED, m->fd,
		 (off_t)(m->offset + at)) == MAP_FAILED ||
	    madvise(block, FERRY_LARGE_BYTES, MADV_COLLAPSE) < 0)
		rc = -errno;
	munmap(room, 2 * FERRY_LARGE_BYTES);
	return rc;
}

int ferry_memory_file_punch(const struct ferry_memory_file *m, uint64_t at, uint64_t bytes)
{
	return fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 (off_t)(m->offset + at), (off_t)bytes) < 0
		       ? -errno
		       : 0;
}
