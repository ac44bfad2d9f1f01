/* A fault at a chosen change, or a chosen read, of files below a directory: loaded before libc into every process.

   FAULT="change kill 17 /dir"   SIGKILL to the process group before change 17
   FAULT="change torn 17 /dir"   the same after it, or in the middle of what it writes
   FAULT="change EIO 17 /dir"    change 17 and every one after it fail with EIO, ENOSPC, EROFS ...
   FAULT="read EIO 17 /dir"      so do reads
   FAULT="read short 17 /dir"    from read 17 on each gives at most half of what it was asked for
   FAULT="change count 0 /dir"   nothing happens
   FAULT_COUNTER=file            8 bytes that count the changes, or the reads, of all processes of a run
   FAULT_SITES=file              gets a line for each: what, tab, where

   A change is a file opened for writing, written, cut, synced, made, renamed or removed; a read is a file opened for
   reading, read or mapped, or a directory listed. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { GO_ON = 0, DIE_AFTER = -1, GIVE_HALF = -2 }; /* above 0: the error to fail with */

static char what[16], kind[16], folder[PATH_MAX];
static size_t length;
static long at;
static atomic_long own, *made;
static int sites = -1, armed;

static int code_of(const char *name) {
    static const struct { const char *name; int code; } known[] = {
        {"EIO", EIO}, {"ENOSPC", ENOSPC}, {"EROFS", EROFS}, {"EDQUOT", EDQUOT}, {"ESTALE", ESTALE}, {"EMFILE", EMFILE}};
    for (size_t one = 0; one < sizeof known / sizeof *known; one++)
        if (!strcmp(name, known[one].name)) return known[one].code;
    return EIO;
}

/* Also called by a process that was forked from one without a fault. */
void strike_arm(void) {
    const char *asked = getenv("FAULT"), *counter = getenv("FAULT_COUNTER"), *listed = getenv("FAULT_SITES");
    armed = 0, made = &own;
    if (!asked || sscanf(asked, "%15s %15s %ld %4095[^\n]", what, kind, &at, folder) != 4) return;
    length = strlen(folder);
    if (counter) {
        int file = syscall(SYS_openat, AT_FDCWD, counter, O_RDWR | O_CLOEXEC, 0);
        void *shared = file < 0 ? MAP_FAILED : (void *)syscall(SYS_mmap, 0, 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (shared != MAP_FAILED) made = shared;
        if (file >= 0) syscall(SYS_close, file);
    }
    if (listed) sites = syscall(SYS_openat, AT_FDCWD, listed, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    armed = 1;
}

__attribute__((constructor)) static void start(void) { strike_arm(); }

static int below(const char *path) {
    return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int verdict(const char *site, const char *event, const char *path) {
    if (strcmp(site, what) || !below(path)) return GO_ON;
    long number = atomic_fetch_add(made, 1) + 1;
    if (sites >= 0) {
        char line[PATH_MAX + 32];
        int size = snprintf(line, sizeof line, "%s\t%s\n", event, path);
        syscall(SYS_write, sites, line, size);
    }
    if (!strcmp(kind, "count")) return GO_ON;
    if (!strcmp(kind, "kill") || !strcmp(kind, "torn")) {
        if (number != at) return GO_ON;
        if (!strcmp(kind, "torn")) return DIE_AFTER;
        syscall(SYS_kill, 0, SIGKILL);
    }
    if (number < at) return GO_ON;
    if (!strcmp(kind, "short")) return GIVE_HALF;
    return code_of(kind);
}

static int of_path(const char *site, const char *event, int directory, const char *path) {
    char full[2 * PATH_MAX], base[PATH_MAX];
    if (!armed || !path) return GO_ON;
    if (*path == '/') return verdict(site, event, path);
    if (directory == AT_FDCWD) {
        if (syscall(SYS_getcwd, base, sizeof base) < 0) return GO_ON;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
        if (size < 0) return GO_ON;
        base[size] = 0;
    }
    snprintf(full, sizeof full, "%s/%s", base, path);
    return verdict(site, event, full);
}

static int of_file(const char *site, const char *event, int file) {
    char link[64], path[PATH_MAX];
    if (!armed || strcmp(site, what)) return GO_ON;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (size < 0) return GO_ON;
    path[size] = 0;
    return verdict(site, event, path);
}

static void die(void) { syscall(SYS_kill, 0, SIGKILL); }

/* What a call does under a verdict: fails, is made, is made and the last one. */
#define STRIKE(found, failed, call)                                                                                    \
    do {                                                                                                               \
        int saw = (found);                                                                                             \
        if (saw > 0) return errno = saw, failed;                                                                       \
        if (saw == DIE_AFTER) { (void)!(call); die(); }                                                                \
        return call;                                                                                                   \
    } while (0)
#define REAL(type, name, ...)                                                                                          \
    static type (*real)(__VA_ARGS__);                                                                                  \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int changes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

static int opened(int directory, const char *path, int flags) {
    return changes(flags) ? of_path("change", "open", directory, path) : of_path("read", "open", directory, path);
}

static int open_file(int directory, const char *path, int flags, mode_t mode) {
    int saw = opened(directory, path, flags);
    if (saw > 0) return errno = saw, -1;
    int file = syscall(SYS_openat, directory, path, flags, mode);
    if (file < 0) return errno = errno, -1;
    if (saw == DIE_AFTER) die();
    return file;
}

static mode_t mode_of(int flags, va_list rest) {
    return flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY)) ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name, extra)                                                                                              \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = mode_of(flags, rest);                                                                            \
        va_end(rest);                                                                                                  \
        return open_file(AT_FDCWD, path, flags | extra, mode);                                                         \
    }
#define OPENAT(name)                                                                                                   \
    int name(int directory, const char *path, int flags, ...) {                                                        \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = mode_of(flags, rest);                                                                            \
        va_end(rest);                                                                                                  \
        return open_file(directory, path, flags, mode);                                                                \
    }
OPEN(open, 0)
OPEN(open64, 0)
OPENAT(openat)
OPENAT(openat64)
int __open_2(const char *path, int flags) { return open_file(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_file(AT_FDCWD, path, flags, 0); }
int creat(const char *path, mode_t mode) { return open_file(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static int stream(const char *path, const char *mode) {
    return of_path(*mode == 'r' && !strchr(mode, '+') ? "read" : "change", "open", AT_FDCWD, path);
}
FILE *fopen(const char *path, const char *mode) {
    REAL(FILE *, "fopen", const char *, const char *);
    STRIKE(stream(path, mode), NULL, real(path, mode));
}
FILE *fopen64(const char *path, const char *mode) {
    REAL(FILE *, "fopen64", const char *, const char *);
    STRIKE(stream(path, mode), NULL, real(path, mode));
}

#define HALF(count) ((count) > 1 ? (count) / 2 : (count))

ssize_t write(int file, const void *data, size_t count) {
    int saw = of_file("change", "write", file);
    if (saw > 0) return errno = saw, -1;
    ssize_t done = syscall(SYS_write, file, data, saw == DIE_AFTER ? HALF(count) : count);
    if (saw == DIE_AFTER) die();
    return done;
}
ssize_t pwrite(int file, const void *data, size_t count, off_t offset) {
    int saw = of_file("change", "write", file);
    if (saw > 0) return errno = saw, -1;
    ssize_t done = syscall(SYS_pwrite64, file, data, saw == DIE_AFTER ? HALF(count) : count, offset);
    if (saw == DIE_AFTER) die();
    return done;
}
ssize_t pwrite64(int file, const void *data, size_t count, off64_t offset) { return pwrite(file, data, count, offset); }
ssize_t writev(int file, const struct iovec *parts, int count) {
    STRIKE(of_file("change", "write", file), -1, syscall(SYS_writev, file, parts, count));
}

#define READ(event, call)                                                                                              \
    do {                                                                                                               \
        int saw = of_file("read", event, file);                                                                        \
        if (saw > 0) return errno = saw, -1;                                                                           \
        if (saw == GIVE_HALF) count = HALF(count);                                                                     \
        return call;                                                                                                   \
    } while (0)
ssize_t read(int file, void *data, size_t count) { READ("read", syscall(SYS_read, file, data, count)); }
ssize_t __read_chk(int file, void *data, size_t count, size_t size) { (void)size; return read(file, data, count); }
ssize_t pread(int file, void *data, size_t count, off_t offset) {
    READ("read", syscall(SYS_pread64, file, data, count, offset));
}
ssize_t pread64(int file, void *data, size_t count, off64_t offset) { return pread(file, data, count, offset); }
ssize_t readv(int file, const struct iovec *parts, int count) {
    READ("read", syscall(SYS_readv, file, parts, count));
}
static ssize_t send_file(int to, int file, off_t *offset, size_t count) {
    int saw = of_file("change", "write", to);
    if (saw > 0) return errno = saw, -1;
    if (saw == DIE_AFTER) syscall(SYS_sendfile, to, file, offset, HALF(count)), die();
    READ("read", syscall(SYS_sendfile, to, file, offset, count));
}
ssize_t sendfile(int to, int from, off_t *offset, size_t count) { return send_file(to, from, offset, count); }
ssize_t sendfile64(int to, int from, off64_t *offset, size_t count) { return send_file(to, from, offset, count); }
ssize_t copy_file_range(int file, off64_t *start, int to, off64_t *end, size_t count, unsigned flags) {
    int saw = of_file("change", "write", to);
    if (saw > 0) return errno = saw, -1;
    if (saw == DIE_AFTER) syscall(SYS_copy_file_range, file, start, to, end, HALF(count), flags), die();
    READ("read", syscall(SYS_copy_file_range, file, start, to, end, count, flags));
}
static void *map(void *place, size_t size, int protection, int flags, int file, off_t offset) {
    int saw = file < 0 || flags & MAP_ANONYMOUS ? GO_ON : of_file("read", "mmap", file);
    if (saw > 0) return errno = saw, MAP_FAILED;
    return (void *)syscall(SYS_mmap, place, size, protection, flags, file, offset);
}
void *mmap(void *place, size_t size, int protection, int flags, int file, off_t offset) {
    return map(place, size, protection, flags, file, offset);
}
void *mmap64(void *place, size_t size, int protection, int flags, int file, off64_t offset) {
    return map(place, size, protection, flags, file, offset);
}
DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *);
    STRIKE(of_path("read", "list", AT_FDCWD, path), NULL, real(path));
}
DIR *fdopendir(int file) {
    REAL(DIR *, "fdopendir", int);
    STRIKE(of_file("read", "list", file), NULL, real(file));
}

int rename(const char *from, const char *to) {
    STRIKE(of_path("change", "rename", AT_FDCWD, to), -1, syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to));
}
int renameat(int from_directory, const char *from, int directory, const char *to) {
    STRIKE(of_path("change", "rename", directory, to), -1, syscall(SYS_renameat, from_directory, from, directory, to));
}
int renameat2(int from_directory, const char *from, int directory, const char *to, unsigned flags) {
    STRIKE(of_path("change", "rename", directory, to), -1,
           syscall(SYS_renameat2, from_directory, from, directory, to, flags));
}
int unlink(const char *path) {
    STRIKE(of_path("change", "remove", AT_FDCWD, path), -1, syscall(SYS_unlinkat, AT_FDCWD, path, 0));
}
int unlinkat(int directory, const char *path, int flags) {
    STRIKE(of_path("change", "remove", directory, path), -1, syscall(SYS_unlinkat, directory, path, flags));
}
int rmdir(const char *path) {
    STRIKE(of_path("change", "remove", AT_FDCWD, path), -1, syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR));
}
int mkdir(const char *path, mode_t mode) {
    STRIKE(of_path("change", "make", AT_FDCWD, path), -1, syscall(SYS_mkdirat, AT_FDCWD, path, mode));
}
int mkdirat(int directory, const char *path, mode_t mode) {
    STRIKE(of_path("change", "make", directory, path), -1, syscall(SYS_mkdirat, directory, path, mode));
}
int link(const char *from, const char *to) {
    STRIKE(of_path("change", "link", AT_FDCWD, to), -1, syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int linkat(int from_directory, const char *from, int directory, const char *to, int flags) {
    STRIKE(of_path("change", "link", directory, to), -1, syscall(SYS_linkat, from_directory, from, directory, to, flags));
}
int symlink(const char *from, const char *to) {
    STRIKE(of_path("change", "link", AT_FDCWD, to), -1, syscall(SYS_symlinkat, from, AT_FDCWD, to));
}
int truncate(const char *path, off_t size) {
    STRIKE(of_path("change", "cut", AT_FDCWD, path), -1, syscall(SYS_truncate, path, size));
}
int truncate64(const char *path, off64_t size) { return truncate(path, size); }
int ftruncate(int file, off_t size) {
    STRIKE(of_file("change", "cut", file), -1, syscall(SYS_ftruncate, file, size));
}
int ftruncate64(int file, off64_t size) { return ftruncate(file, size); }
int fsync(int file) { STRIKE(of_file("change", "sync", file), -1, syscall(SYS_fsync, file)); }
int fdatasync(int file) { STRIKE(of_file("change", "sync", file), -1, syscall(SYS_fdatasync, file)); }
