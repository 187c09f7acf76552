/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file as a page source. Small pages are read with pread(2) into scratch memory that fits the
 * processor's cache, looked at there and sent from there. Huge pages are sent from a mapping, but
 * also looked at with pread(2): it neither allocates a page for a hole (lseek(2) doesn't know them
 * on hugetlbfs) nor dies of a truncation.
 *
 * Sending small pages from a mapping saves the copy and costs a page fault instead, since a page is
 * sent once: an urgent page of a memfd took 40 us that way and 18 us this way, and a stream took
 * the same processor time, once its page tables were there.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "pageserver/source_internal.h"
#include "protocol/checksum.h"

struct file_source {
	struct ferry_source base;
	int fd;		    /* owned */
	uint64_t offset;    /* of the region in the file */
	const uint8_t *map; /* owned; of huge pages, or NULL */
	bool on_disk;	    /* worth reading ahead */
	struct ferry_source_gate gate; /* of a file that is being filled */
};

/* How much of a huge page is looked at in one call; on the stack, also of a push thread. */
#define PROBE_BYTES (16 * 1024)

static uint64_t region_bytes(const struct file_source *fs)
{
	return fs->base.desc.n_pages * fs->base.desc.page_bytes;
}

static int read_all(int fd, uint8_t *out, size_t len, uint64_t offset)
{
	while (len) {
		ssize_t n = pread(fd, out, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -EIO; /* the file was truncated, or its disk is broken */
		out += n;
		len -= (size_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

static int file_pages(struct ferry_source *s, uint64_t first, uint32_t n, void *scratch,
		      const void **data)
{
	struct file_source *fs = (struct file_source *)s;
	uint64_t at = first * s->desc.page_bytes;
	size_t len = (size_t)n * s->desc.page_bytes;
	int rc;

	if (fs->map) {
		*data = fs->map + at;
		return 0;
	}
	rc = read_all(fs->fd, scratch, len, fs->offset + at);
	if (rc < 0)
		return rc;
	/* What follows a long run is probably sent next; a single page says nothing. */
	if (fs->on_disk && len >= 64 * FERRY_KIB)
		posix_fadvise(fs->fd, (off_t)(fs->offset + at + len), (off_t)(4 * len),
			      POSIX_FADV_WILLNEED);
	*data = scratch;
	return 0;
}

static int huge_is_zero(struct ferry_source *s, uint64_t page)
{
	struct file_source *fs = (struct file_source *)s;
	uint64_t at = fs->offset + page * s->desc.page_bytes;
	uint8_t piece[PROBE_BYTES];

	for (uint32_t done = 0; done < s->desc.page_bytes;) {
		/* A page with data mostly shows it at its beginning. */
		uint32_t len = done ? PROBE_BYTES : FERRY_MIN_PAGE_BYTES;
		int rc;

		len = FERRY_MIN(len, s->desc.page_bytes - done);
		rc = read_all(fs->fd, piece, len, at + done);
		if (rc < 0)
			return rc;
		if (!ferry_is_zero(piece, len))
			return 0;
		done += len;
	}
	return 1;
}

static int huge_sum(struct ferry_source *s, uint64_t first, uint32_t n, void *state)
{
	struct file_source *fs = (struct file_source *)s;
	uint64_t at = fs->offset + first * s->desc.page_bytes;
	uint64_t left = (uint64_t)n * s->desc.page_bytes;
	uint8_t piece[PROBE_BYTES];

	for (; left; left -= PROBE_BYTES, at += PROBE_BYTES) {
		int rc = read_all(fs->fd, piece, PROBE_BYTES, at);

		if (rc < 0)
			return rc;
		ferry_checksum_add(state, piece, PROBE_BYTES);
	}
	return 0;
}

static int file_next_data(struct ferry_source *s, uint64_t from, uint64_t *first, uint64_t *end)
{
	struct file_source *fs = (struct file_source *)s;
	uint64_t page_bytes = s->desc.page_bytes, limit = fs->offset + region_bytes(fs);
	off_t data, hole;
	struct stat st;

	/* What lies behind a file's end is not a hole: it is lost. */
	if (fstat(fs->fd, &st) < 0)
		return -errno;
	if ((uint64_t)st.st_size < limit)
		return -EIO;
	data = lseek(fs->fd, (off_t)(fs->offset + from * page_bytes), SEEK_DATA);
	if (data < 0 && errno != ENXIO) {
		*first = from;
		*end = s->desc.n_pages;
		return errno == EINVAL ? 0 : -errno;
	}
	if (data < 0 || (uint64_t)data >= limit) {
		*first = *end = s->desc.n_pages;
		return 0;
	}
	hole = lseek(fs->fd, data, SEEK_HOLE);
	if (hole < 0)
		return -errno;
	*first = ((uint64_t)data - fs->offset) / page_bytes;
	*end = (FERRY_MIN((uint64_t)hole, limit) - fs->offset + page_bytes - 1) / page_bytes;
	return 0;
}

static int file_disk(const struct ferry_source *s, uint64_t page, uint64_t *offset)
{
	const struct file_source *fs = (const struct file_source *)s;

	*offset = fs->offset + page * s->desc.page_bytes;
	return fs->on_disk ? fs->fd : -1;
}

static void file_free(struct ferry_source *s)
{
	struct file_source *fs = (struct file_source *)s;

	if (fs->map)
		munmap((void *)fs->map, region_bytes(fs));
	ferry_close(fs->fd);
}

static const struct ferry_source_ops file_ops = {
	.pages = file_pages,
	.next_data = file_next_data,
	.disk = file_disk,
	.free = file_free,
};

static bool gated_has(struct ferry_source *s, uint64_t first, uint32_t n, bool want)
{
	struct file_source *fs = (struct file_source *)s;
	uint64_t page_bytes = s->desc.page_bytes;

	return fs->gate.has(fs->gate.ctx, fs->offset + first * page_bytes, n * page_bytes, want);
}

/* A hole of it may be what has not come yet. */
static const struct ferry_source_ops gated_ops = {
	.pages = file_pages,
	.has = gated_has,
	.free = file_free,
};

static const struct ferry_source_ops huge_ops = {
	.pages = file_pages,
	.is_zero = huge_is_zero,
	.sum = huge_sum,
	.next_data = file_next_data,
	.free = file_free,
};

static int check_file(int fd, uint64_t offset, uint64_t bytes, uint32_t page_bytes,
		      const struct statfs *sfs, struct ferry_failure *f)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "fstat");
	if (!S_ISREG(st.st_mode))
		return ferry_fail(f, FERRY_REFUSE, -ENODEV, "not a regular file");
	if (offset % page_bytes || bytes % page_bytes)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "offset %llu and size %llu are not both multiples of the page "
				  "size %u; pad the file or choose a smaller page size",
				  (unsigned long long)offset, (unsigned long long)bytes,
				  page_bytes);
	if (offset > (uint64_t)st.st_size || bytes > (uint64_t)st.st_size - offset)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "%llu bytes at %llu are past the end of the file (%llu bytes)",
				  (unsigned long long)bytes, (unsigned long long)offset,
				  (unsigned long long)st.st_size);
	if (sfs->f_type == HUGETLBFS_MAGIC && page_bytes % (uint64_t)sfs->f_bsize)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "the file has huge pages of %llu bytes: use that page size",
				  (unsigned long long)sfs->f_bsize);
	return 0;
}

static int open_file(struct ferry_source **out, const char *name, int fd, uint64_t offset,
		     uint64_t bytes, uint32_t page_bytes, struct ferry_failure *f)
{
	_cleanup_free_ struct file_source *fs = calloc(1, sizeof(*fs));
	struct statfs sfs;
	int rc;

	if (!fs)
		return ferry_fail_errno(f, FERRY_REFUSE, -ENOMEM, "page source");
	if (fstatfs(fd, &sfs) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "fstatfs");
	rc = ferry_source_describe(&fs->base, name, bytes, page_bytes, f);
	if (rc < 0)
		return rc;
	rc = check_file(fd, offset, bytes, page_bytes, &sfs, f);
	if (rc < 0)
		return rc;
	fs->fd = fd;
	fs->offset = offset;
	fs->on_disk = sfs.f_type != TMPFS_MAGIC && sfs.f_type != HUGETLBFS_MAGIC;
	fs->base.copies = sfs.f_type != HUGETLBFS_MAGIC;
	fs->base.ops = fs->base.copies ? &file_ops : &huge_ops;
	if (!fs->base.copies) {
		void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, (off_t)offset);

		if (map == MAP_FAILED)
			return ferry_fail_errno(f, FERRY_REFUSE, -errno, "mmap");
		fs->map = map;
	}
	*out = &TAKE_PTR(fs)->base;
	return 0;
}

int ferry_source_open_fd(struct ferry_source **out, const char *name, int fd, uint64_t offset,
			 uint64_t bytes, uint32_t page_bytes, struct ferry_failure *f)
{
	int rc = open_file(out, name, fd, offset, bytes, page_bytes, f);

	if (rc < 0)
		ferry_close(fd);
	return rc;
}

int ferry_source_open_gated(struct ferry_source **out, const char *name, int fd, uint64_t offset,
			    uint64_t bytes, uint32_t page_bytes, const struct ferry_source_gate *gate,
			    struct ferry_failure *f)
{
	int rc = ferry_source_open_fd(out, name, fd, offset, bytes, page_bytes, f);
	struct file_source *fs;

	if (rc < 0)
		return rc;
	fs = (struct file_source *)*out;
	fs->gate = *gate;
	fs->base.ops = &gated_ops;
	return 0;
}

/* The whole file, in huge pages where it is made of them. */
static int open_whole(struct ferry_source **out, const char *path, int fd, struct ferry_failure *f)
{
	const char *slash = strrchr(path, '/');
	uint32_t page_bytes = FERRY_PAGE_SIZE_DEFAULT;
	char name[FERRY_MAX_REGION_NAME];
	struct statfs sfs;
	struct stat st;
	int rc;

	if (fstat(fd, &st) < 0 || fstatfs(fd, &sfs) < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "fstat");
	if (S_ISREG(st.st_mode) && !st.st_size)
		return ferry_fail(f, FERRY_REFUSE, -EINVAL, "the file is empty");
	if (sfs.f_type == HUGETLBFS_MAGIC) {
		if (sfs.f_bsize > FERRY_MAX_PAGE_BYTES)
			return ferry_fail(f, FERRY_REFUSE, -EINVAL,
					  "huge pages of %llu bytes; at most %u are possible",
					  (unsigned long long)sfs.f_bsize, FERRY_MAX_PAGE_BYTES);
		page_bytes = (uint32_t)sfs.f_bsize;
	}
	snprintf(name, sizeof(name), "%s", slash ? slash + 1 : path);
	rc = open_file(out, name, fd, 0, (uint64_t)st.st_size, page_bytes, f);
	/* Not its inode: a copy elsewhere, made with its time, has the same pages. */
	if (!rc)
		(*out)->identity = ferry_checksum((uint64_t)st.st_size, &st.st_mtim,
						  sizeof(st.st_mtim));
	return rc;
}

int ferry_source_open_path(struct ferry_source **out, const char *path, struct ferry_failure *f)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	int rc;

	if (fd < 0)
		return ferry_fail_errno(f, FERRY_REFUSE, -errno, "cannot open %s", path);
	rc = open_whole(out, path, fd, f);
	if (rc < 0)
		ferry_fail_prefix(f, "%s", path);
	else
		TAKE_FD(fd);
	return rc;
}
