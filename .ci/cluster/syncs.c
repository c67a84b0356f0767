// Makes the disk of one process slow, or one of its syncs fail. Preloaded; switched by files in the folder $SYNCS_SWITCH:
//   slow   holds a number: every sync takes that many milliseconds longer
//   fail   one sync answers EIO without having been made; whoever removes the file takes the failure
// A sync is fsync, fdatasync, or a pwrite to a file opened with O_DSYNC. Not here: system calls made without libc.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static const char *path(char *buffer, size_t size, const char *name) {
    const char *folder = getenv("SYNCS_SWITCH");
    if (!folder) return NULL;
    snprintf(buffer, size, "%s/%s", folder, name);
    return buffer;
}

static int disturbed(void) {
    char buffer[4096];
    int saved = errno, failed = 0;
    const char *slow = path(buffer, sizeof buffer, "slow");
    FILE *file = slow ? fopen(slow, "r") : NULL;
    if (file) {
        long ms = 0;
        if (fscanf(file, "%ld", &ms) != 1) ms = 0;
        fclose(file);
        struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
        nanosleep(&pause, NULL);
    }
    const char *fail = path(buffer, sizeof buffer, "fail");
    if (fail && unlink(fail) == 0) failed = 1;
    errno = failed ? EIO : saved;
    return failed;
}

// The function that would have been called without us.
#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

int fsync(int fd) {
    REAL(fsync);
    return disturbed() ? -1 : real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    return disturbed() ? -1 : real(fd);
}

static int durable(int fd) {
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && (flags & O_DSYNC);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    return durable(fd) && disturbed() ? -1 : real(fd, data, size, at);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    return pwrite64(fd, data, size, at);
}
