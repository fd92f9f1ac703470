/*
 * Where requests run: reads, writes and flushes of raw images in io_uring, if the build has
 * liburing and the kernel allows it; everything else, and what io_uring leaves unfinished, on a
 * few worker threads.
 *
 * One eventfd announces ended requests of both kinds.  The ring is only touched with the machine
 * lock held; `lock` is a leaf lock for the two lists.
 */
#include "devices/block_queue.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "devices/block_image.h"

#ifdef HAVE_LIBURING
#include <liburing.h>
#endif

#define MAX_THREADS  4
#define RING_ENTRIES 128
#define REAP_ROUNDS  8

struct request_list {
    struct block_request *first, **last;
};

struct block_queue {
    int event_fd;
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct request_list waiting, ended;
    unsigned threads, idle;
    bool stop;
    pthread_t thread[MAX_THREADS];
    bool has_ring;
#ifdef HAVE_LIBURING
    struct io_uring ring;
    unsigned in_ring;
#endif
};

static void list_init(struct request_list *l)
{
    l->first = NULL;
    l->last = &l->first;
}

static void list_append(struct request_list *l, struct block_request *r)
{
    r->next = NULL;
    *l->last = r;
    l->last = &r->next;
}

static struct block_request *list_take(struct request_list *l)
{
    struct block_request *r = l->first;

    if (r) {
        l->first = r->next;
        if (!l->first)
            l->last = &l->first;
    }
    return r;
}

static void announce(struct block_queue *q)
{
    uint64_t one = 1;

    /* Only a full counter is refused, and then it is readable already. */
    if (write(q->event_fd, &one, sizeof(one)) < 0)
        return;
}

void block_queue_finish(struct block_queue *q, struct block_request *r, int result)
{
    bool first;

    r->result = result;
    pthread_mutex_lock(&q->lock);
    first = q->ended.first == NULL;
    list_append(&q->ended, r);
    pthread_mutex_unlock(&q->lock);
    if (first)
        announce(q);
}

/* -- Worker threads ---------------------------------------------------------------------------- */

static void *worker(void *opaque)
{
    struct block_queue *q = opaque;

    pthread_mutex_lock(&q->lock);
    for (;;) {
        struct block_request *r = list_take(&q->waiting);

        if (r) {
            pthread_mutex_unlock(&q->lock);
            block_queue_finish(q, r, block_image_run(r));
            pthread_mutex_lock(&q->lock);
        } else if (q->stop) {
            break;
        } else {
            q->idle++;
            pthread_cond_wait(&q->work, &q->lock);
            q->idle--;
        }
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

/* Signals are other threads' business.  Lock held; a failure is only one if there is no thread. */
static int start_thread(struct block_queue *q)
{
    sigset_t all, old;
    int err;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&q->thread[q->threads], NULL, worker, q);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!err)
        q->threads++;
    return -err;
}

static void hand_to_worker(struct block_queue *q, struct block_request *r)
{
    int err = 0;

    pthread_mutex_lock(&q->lock);
    if (q->idle == 0 && q->threads < MAX_THREADS)
        err = start_thread(q);
    if (q->threads)
        err = 0;
    if (!err) {
        list_append(&q->waiting, r);
        pthread_cond_signal(&q->work);
    }
    pthread_mutex_unlock(&q->lock);
    if (err)
        block_queue_finish(q, r, err);
}

/* -- io_uring ---------------------------------------------------------------------------------- */

#ifdef HAVE_LIBURING

static void ring_create(struct block_queue *q)
{
    /* Refused by old kernels, seccomp filters and kernel.io_uring_disabled: then there is none. */
    if (io_uring_queue_init(RING_ENTRIES, &q->ring, 0))
        return;
    if (io_uring_register_eventfd(&q->ring, q->event_fd)) {
        io_uring_queue_exit(&q->ring);
        return;
    }
    q->has_ring = true;
}

static void ring_destroy(struct block_queue *q)
{
    if (q->has_ring)
        io_uring_queue_exit(&q->ring);
    q->has_ring = false;
}

static bool ring_start(struct block_queue *q, struct block_request *r)
{
    int fd = r->image->direct_fd;
    struct io_uring_sqe *sqe;

    if (!q->has_ring || fd < 0 || r->op > BLOCK_FLUSH || r->iovcnt > IOV_MAX ||
        (r->op == BLOCK_FLUSH && r->image->read_only) || q->in_ring >= RING_ENTRIES)
        return false;
    sqe = io_uring_get_sqe(&q->ring);
    if (!sqe)
        return false;
    if (r->op == BLOCK_READ)
        io_uring_prep_readv(sqe, fd, r->iov, r->iovcnt, r->offset);
    else if (r->op == BLOCK_WRITE)
        io_uring_prep_writev(sqe, fd, r->iov, r->iovcnt, r->offset);
    else
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    io_uring_sqe_set_data(sqe, r);
    q->in_ring++;
    /* What the kernel does not take now it takes at the next submission or poll. */
    io_uring_submit(&q->ring);
    return true;
}

static void ring_poll(struct block_queue *q)
{
    struct io_uring_cqe *cqe;

    if (!q->has_ring)
        return;
    if (io_uring_sq_ready(&q->ring))
        io_uring_submit(&q->ring);
    while (!io_uring_peek_cqe(&q->ring, &cqe)) {
        struct block_request *r = io_uring_cqe_get_data(cqe);
        int result = cqe->res;

        io_uring_cqe_seen(&q->ring, cqe);
        q->in_ring--;
        if (result < 0 && result != -EINTR && result != -EAGAIN && result != -ECANCELED)
            block_queue_finish(q, r, result);
        else if (result < 0 || (r->op != BLOCK_FLUSH && (uint64_t)result != r->len))
            hand_to_worker(q, r); /* all of it again: a short transfer has done no harm */
        else
            block_queue_finish(q, r, 0);
    }
}

static bool ring_ready(const struct block_queue *q)
{
    return q->has_ring && io_uring_cq_ready(&q->ring);
}

#else

static bool ring_ready(const struct block_queue *q)
{
    (void)q;
    return false;
}

static void ring_create(struct block_queue *q)
{
    (void)q;
}

static void ring_destroy(struct block_queue *q)
{
    (void)q;
}

static bool ring_start(struct block_queue *q, struct block_request *r)
{
    (void)q, (void)r;
    return false;
}

static void ring_poll(struct block_queue *q)
{
    (void)q;
}

#endif

/* -- The queue --------------------------------------------------------------------------------- */

void block_queue_start(struct block_queue *q, struct block_request *r)
{
    if (!ring_start(q, r))
        hand_to_worker(q, r);
}

static void tell_ended(struct block_queue *q)
{
    struct block_request *r;

    ring_poll(q);
    for (;;) {
        pthread_mutex_lock(&q->lock);
        r = list_take(&q->ended);
        pthread_mutex_unlock(&q->lock);
        if (!r)
            break;
        block_request_ended(r);
    }
}

void block_queue_poll(struct block_queue *q)
{
    uint64_t count;

    /* Before looking: what ends from now on announces itself again. */
    if (read(q->event_fd, &count, sizeof(count)) < 0)
        count = 0;
    tell_ended(q);
}

void block_queue_reap(struct block_queue *q)
{
    /* The next piece may have ended, too.  Not for ever: the vCPU waits, and the event loop has
     * been told anyway. */
    for (unsigned i = 0; i < REAP_ROUNDS && ring_ready(q); i++)
        tell_ended(q);
}

void block_queue_wait(struct block_queue *q)
{
    struct pollfd p = {.fd = q->event_fd, .events = POLLIN};

    poll(&p, 1, -1);
}

int block_queue_fd(const struct block_queue *q)
{
    return q->event_fd;
}

bool block_queue_has_uring(const struct block_queue *q)
{
    return q->has_ring;
}

int block_queue_create(struct block_queue **out, unsigned flags)
{
    struct block_queue *q = calloc(1, sizeof(*q));

    if (!q)
        return -ENOMEM;
    q->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (q->event_fd < 0) {
        int err = -errno;

        free(q);
        return err;
    }
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->work, NULL);
    list_init(&q->waiting);
    list_init(&q->ended);
    if (!(flags & BLOCK_QUEUE_NO_URING))
        ring_create(q);
    *out = q;
    return 0;
}

void block_queue_destroy(struct block_queue *q)
{
    /* Drives have waited for their requests. */
    pthread_mutex_lock(&q->lock);
    q->stop = true;
    pthread_cond_broadcast(&q->work);
    pthread_mutex_unlock(&q->lock);
    for (unsigned i = 0; i < q->threads; i++)
        pthread_join(q->thread[i], NULL);
    ring_destroy(q);
    pthread_cond_destroy(&q->work);
    pthread_mutex_destroy(&q->lock);
    close(q->event_fd);
    free(q);
}
