/* Threads: creation, futexes, thread-local storage, atomics, segment bases. */
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>

#include "suite.h"

static __thread uint64_t tls_value = 42;
static __thread uint8_t tls_block[5000];

static void *tls_thread(void *arg)
{
    uint64_t id = (uint64_t)arg;
    if (tls_value != 42)
        return (void *)1;
    for (int i = 0; i < 20000; i++) {
        tls_value += id;
        tls_block[(unsigned)i % 5000] = (uint8_t)id;
        if (i % 1000 == 0)
            sched_yield();
    }
    for (unsigned i = 0; i < 5000; i++)
        if (tls_block[i] != (uint8_t)id)
            return (void *)2;
    return (void *)(tls_value == 42 + 20000 * id ? 0ul : 3ul);
}

TEST(thread, tls)
{
    pthread_t t[16];
    for (uint64_t i = 0; i < 16; i++)
        EQ(pthread_create(&t[i], NULL, tls_thread, (void *)(i + 1)), 0);
    for (int i = 0; i < 16; i++) {
        void *r;
        pthread_join(t[i], &r);
        EQ(r, 0);
    }
    EQ(tls_value, 42);
}

static void *nothing(void *arg)
{
    return arg;
}

TEST(thread, create_join_storm)
{
    for (uint64_t i = 0; i < 1000; i++) {
        pthread_t t;
        void *r;
        EQ(pthread_create(&t, NULL, nothing, (void *)i), 0);
        EQ(pthread_join(t, &r), 0);
        EQ(r, i);
    }
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t counter, atomic_counter;

static void *count_thread(void *arg)
{
    for (int i = 0; i < 20000; i++) {
        pthread_mutex_lock(&mutex);
        counter++;
        pthread_mutex_unlock(&mutex);
        __atomic_fetch_add(&atomic_counter, 3, __ATOMIC_SEQ_CST);
        __sync_fetch_and_sub(&atomic_counter, 1);
        uint64_t v = __atomic_load_n(&atomic_counter, __ATOMIC_RELAXED);
        while (!__atomic_compare_exchange_n(&atomic_counter, &v, v + 5, 0, __ATOMIC_SEQ_CST,
                                            __ATOMIC_SEQ_CST))
            ;
    }
    return NULL;
}

TEST(thread, mutex_and_atomics)
{
    pthread_t t[8];
    for (int i = 0; i < 8; i++)
        EQ(pthread_create(&t[i], NULL, count_thread, NULL), 0);
    for (int i = 0; i < 8; i++)
        pthread_join(t[i], NULL);
    EQ(counter, 8 * 20000);
    EQ(atomic_counter, 8 * 20000 * 7ul);
}

/* Bounded buffer with condition variables. */
static pthread_cond_t not_empty = PTHREAD_COND_INITIALIZER, not_full = PTHREAD_COND_INITIALIZER;
static unsigned queue[8], queue_head, queue_tail;

static void *producer(void *arg)
{
    for (unsigned i = 1; i <= 10000; i++) {
        pthread_mutex_lock(&mutex);
        while (queue_head - queue_tail == 8)
            pthread_cond_wait(&not_full, &mutex);
        queue[queue_head++ % 8] = i;
        pthread_cond_signal(&not_empty);
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

TEST(thread, condition_variables)
{
    pthread_t t;
    uint64_t sum = 0;
    EQ(pthread_create(&t, NULL, producer, NULL), 0);
    for (int i = 0; i < 10000; i++) {
        pthread_mutex_lock(&mutex);
        while (queue_head == queue_tail)
            pthread_cond_wait(&not_empty, &mutex);
        sum += queue[queue_tail++ % 8];
        pthread_cond_signal(&not_full);
        pthread_mutex_unlock(&mutex);
    }
    pthread_join(t, NULL);
    EQ(sum, 10000ul * 10001 / 2);
}

static _Atomic uint32_t token;

static void *futex_thread(void *arg)
{
    for (uint32_t i = 0; i < 5000; i++) {
        uint32_t v;
        while ((v = token) % 2 == 0)
            syscall(SYS_futex, &token, FUTEX_WAIT_PRIVATE, v, NULL, NULL, 0);
        token = v + 1;
        syscall(SYS_futex, &token, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
    return NULL;
}

TEST(thread, futex_ping_pong)
{
    pthread_t t;
    EQ(pthread_create(&t, NULL, futex_thread, NULL), 0);
    for (uint32_t i = 0; i < 5000; i++) {
        uint32_t v;
        while ((v = token) % 2 == 1)
            syscall(SYS_futex, &token, FUTEX_WAIT_PRIVATE, v, NULL, NULL, 0);
        token = v + 1;
        syscall(SYS_futex, &token, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
    pthread_join(t, NULL);
    EQ(token, 10000);
    struct timespec ts = {0, 20000000};
    double t0 = now();
    EQ(syscall(SYS_futex, &token, FUTEX_WAIT_PRIVATE, 10000, &ts, NULL, 0), -1);
    EQ(errno, ETIMEDOUT);
    CHECK(now() - t0 >= 0.019);
}

static pthread_barrier_t barrier;
static _Atomic uint32_t phase_count[100];

static void *barrier_thread(void *arg)
{
    for (int i = 0; i < 100; i++) {
        phase_count[i]++;
        pthread_barrier_wait(&barrier);
        if (phase_count[i] != 6)
            return (void *)1;
    }
    return NULL;
}

TEST(thread, barrier)
{
    pthread_t t[6];
    pthread_barrier_init(&barrier, NULL, 6);
    for (int i = 0; i < 6; i++)
        EQ(pthread_create(&t[i], NULL, barrier_thread, NULL), 0);
    for (int i = 0; i < 6; i++) {
        void *r;
        pthread_join(t[i], &r);
        EQ(r, 0);
    }
}

/* A lock-free stack with a version counter: CMPXCHG16B. */
struct head {
    uint64_t index, version;
} __attribute__((aligned(16)));
static struct head lf_head;
static uint64_t lf_next[64];

static bool cas16(struct head *h, struct head *old, struct head new)
{
    bool ok;
    asm volatile("lock cmpxchg16b %1"
                 : "=@ccz"(ok), "+m"(*h), "+a"(old->index), "+d"(old->version)
                 : "b"(new.index), "c"(new.version)
                 : "memory");
    return ok;
}

static void *lockfree_thread(void *arg)
{
    for (int i = 0; i < 20000; i++) {
        struct head old = {0, 0};
        while (!cas16(&lf_head, &old,
                      lf_head.index == old.index && lf_head.version == old.version && old.index
                          ? (struct head){lf_next[old.index], old.version + 1}
                          : old) ||
               !old.index)
            ;
        uint64_t mine = old.index;
        old = (struct head){0, 0};
        do
            lf_next[mine] = old.index;
        while (!cas16(&lf_head, &old, (struct head){mine, old.version + 1}));
    }
    return NULL;
}

TEST(thread, cmpxchg16b)
{
    pthread_t t[3];
    for (uint64_t i = 1; i < 64; i++)
        lf_next[i] = i + 1 < 64 ? i + 1 : 0;
    lf_head = (struct head){1, 0};
    for (int i = 0; i < 3; i++)
        EQ(pthread_create(&t[i], NULL, lockfree_thread, NULL), 0);
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], NULL);
    uint64_t count = 0;
    for (uint64_t i = lf_head.index; i && count < 100; i = lf_next[i])
        count++;
    EQ(count, 63);
}

static volatile uint64_t signalled_by;
static __thread uint64_t own_id;
static void on_thread_signal(int sig, siginfo_t *info, void *context)
{
    signalled_by = own_id;
}
static sem_t ready, finish;

static void *signal_thread(void *arg)
{
    own_id = (uint64_t)arg;
    sem_post(&ready);
    while (sem_wait(&finish) != 0)
        ;
    return NULL;
}

TEST(thread, directed_signals)
{
    pthread_t t[4];
    sem_init(&ready, 0, 0);
    sem_init(&finish, 0, 0);
    handle(SIGUSR1, on_thread_signal, SA_RESTART);
    for (uint64_t i = 0; i < 4; i++) {
        EQ(pthread_create(&t[i], NULL, signal_thread, (void *)(i + 1)), 0);
        sem_wait(&ready);
    }
    for (uint64_t i = 0; i < 400; i++) {
        signalled_by = 0;
        pthread_kill(t[i % 4], SIGUSR1);
        for (int k = 0; k < 20000 && !signalled_by; k++)
            sched_yield();
        for (int k = 0; k < 60000 && !signalled_by; k++)
            usleep(1000);
        EQ(signalled_by, i % 4 + 1);
    }
    for (int i = 0; i < 4; i++)
        sem_post(&finish);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
}

static void *spin_forever(void *arg)
{
    for (;;)
        asm volatile("pause");
    return NULL;
}

TEST(thread, exit_with_spinning_threads)
{
    /* The process ends while twenty threads spin in user code; exit_group must stop them all. */
    for (int i = 0; i < 20; i++) {
        pthread_t t;
        EQ(pthread_create(&t, NULL, spin_forever, NULL), 0);
        pthread_detach(t);
        usleep(1000);
    }
}

TEST(thread, gs_base)
{
    static uint64_t data[4] = {11, 22, 33, 44};
    uint64_t v, base;
    SYS(syscall(SYS_arch_prctl, ARCH_SET_GS, data));
    for (int i = 0; i < 2000; i++) {
        asm volatile("mov %%gs:8, %0" : "=r"(v));
        EQ(v, 22);
        if (i % 100 == 0)
            sched_yield();
    }
    SYS(syscall(SYS_arch_prctl, ARCH_GET_GS, &base));
    EQ(base, data);
    asm volatile(
        "movl $1, %%ecx\n\tlea 8(,%%rcx,8), %%r11\n\tmov %%gs:(%%r11), %%r10\n\tmov %%r10, %0"
        : "=r"(v)::"rcx", "r10", "r11");
    EQ(v, 33);
    /* AT_HWCAP2 bit 1: FSGSBASE instructions may be used */
    FILE *f = fopen("/proc/self/auxv", "r");
    uint64_t pair[2];
    bool fsgsbase = false;
    while (f && fread(pair, 16, 1, f) == 1)
        if (pair[0] == 26)
            fsgsbase = pair[1] & 2;
    if (f)
        fclose(f);
    if (fsgsbase) {
        asm volatile("rdgsbase %0" : "=r"(base));
        EQ(base, data);
        asm volatile("wrgsbase %0" ::"r"(data + 2));
        asm volatile("mov %%gs:0, %0" : "=r"(v));
        EQ(v, 33);
        asm volatile("rdfsbase %0" : "=r"(base));
        EQ(base, *(uint64_t *)base); /* the thread control block points to itself */
        sched_yield();
        asm volatile("rdgsbase %0" : "=r"(base));
        EQ(base, data + 2);
        asm volatile("wrgsbase %0" ::"r"(0ul));
    } else {
        SYS(syscall(SYS_arch_prctl, ARCH_SET_GS, 0));
    }
}

TEST(thread, ldt_segment)
{
    static uint32_t *data;
    data = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (data == MAP_FAILED)
        SKIP("MAP_32BIT failed");
    data[3] = 0x12345678;
    struct user_desc d = {.entry_number = 1,
                          .base_addr = (unsigned)(uint64_t)data,
                          .limit = 0xfffff,
                          .seg_32bit = 1,
                          .limit_in_pages = 1,
                          .useable = 1};
    if (syscall(SYS_modify_ldt, 1, &d, sizeof(d)) != 0)
        SKIP("no modify_ldt");
    uint32_t v, sel = 1 * 8 + 7;
    for (int i = 0; i < 200; i++) {
        asm volatile("mov %1, %%gs\n\tmov %%gs:12, %0\n\tmov %2, %%gs"
                     : "=r"(v)
                     : "r"(sel), "r"(0));
        EQ(v, 0x12345678);
    }
    uint32_t limit, rights;
    bool ok;
    asm volatile("lsl %2, %0" : "=r"(limit), "=@ccz"(ok) : "r"(sel));
    CHECK(ok);
    EQ(limit, 0xffffffff);
    asm volatile("lar %2, %0" : "=r"(rights), "=@ccz"(ok) : "r"(sel));
    CHECK(ok);
    EQ(rights & 0xf000, 0xf000);
    asm volatile("verw %w1" : "=@ccz"(ok) : "r"(sel));
    CHECK(ok);
    asm volatile("verr %w1" : "=@ccz"(ok) : "r"(0x18));
    asm volatile("lar %2, %0" : "=r"(rights), "=@ccz"(ok) : "r"(0xfff8));
    CHECK(!ok);
}
