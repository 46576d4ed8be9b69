/*
 * fork() beside threads that make contexts, in signal handlers, in threads of a high priority, and with thousands of contexts: a
 * child is never stopped by what a thread that it does not have was doing, no fork waits for what cannot go on, and a
 * fork costs hardly more than on libssl alone.
 */
#define OPENSSL_SUPPRESS_DEPRECATED /* SSL_CTX_flush_sessions is the name programs use */
#define _GNU_SOURCE /* CPU_SET, REG_EFL */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { SESSIONS = 64, CONTEXTS = 1000, FORKS = 100 };

static SSL_CTX *ctx;
static SSL_SESSION *sessions[SESSIONS];
static atomic_int stop;

/* ---- children beside threads that have libcrypto's locks ---- */

static void *make_contexts(void *arg)
{
    while (!stop)
        SSL_CTX_free(SSL_CTX_new(TLS_method()));
    return arg;
}

/* What libssl alone can do in a child with what its parent made. */
static int mark_them(void *arg)
{
    (void)arg;
    for (int i = 0; i < SESSIONS / 2; i++)
        if (SSL_CTX_remove_session(ctx, sessions[i]) != 1)
            return 1;
    for (int i = 0; i < SESSIONS; i++)
        if (SSL_SESSION_is_resumable(sessions[i]) != (i >= SESSIONS / 2))
            return 2;
    return 0;
}

static void children_mark_sessions(void **state)
{
    pthread_t threads[4];

    (void)state;
    ctx = SSL_CTX_new(TLS_method());
    for (int i = 0; i < SESSIONS; i++) {
        sessions[i] = made_session(TLS1_2_VERSION, (unsigned char)(1 + i));
        assert_true(added(ctx, sessions[i]));
    }
    stop = 0;
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, make_contexts, NULL);
    for (int i = 0; i < fewer(FORKS); i++)
        assert_string_equal(in_child(mark_them, NULL, 20), "returns 0");
    stop = 1;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < SESSIONS; i++)
        SSL_SESSION_free(sessions[i]);
    SSL_CTX_free(ctx);
}

/* ---- what the statistics say in children of children ---- */

/* In each process two more sessions come and one leaves for want of room; every other process only forks. */
static int descend(int depth, long full)
{
    int status;
    pid_t child;

    if (SSL_CTX_sess_cache_full(ctx) != full)
        return 10 + depth;
    if (depth % 2 == 0) {
        if (!SSL_CTX_add_session(ctx, sessions[2 * depth]) || !SSL_CTX_add_session(ctx, sessions[2 * depth + 1]))
            return 30 + depth;
        full = SSL_CTX_sess_cache_full(ctx);
        if (full < depth - 1)
            return 50 + depth;
    }
    if (depth == 8)
        return 0;
    if ((child = fork()) == 0)
        _exit(descend(depth + 1, full));
    waitpid(child, &status, 0);
    /* What the child counted is the child's. */
    if (SSL_CTX_sess_cache_full(ctx) != full)
        return 70 + depth;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 99;
}

static void statistics_in_grandchildren(void **state)
{
    (void)state;
    ctx = SSL_CTX_new(TLS_method());
    SSL_CTX_sess_set_cache_size(ctx, 3);
    for (int i = 0; i < SESSIONS; i++)
        sessions[i] = made_session(TLS1_2_VERSION, (unsigned char)(1 + i));
    assert_int_equal(descend(0, 0), 0);
    for (int i = 0; i < SESSIONS; i++)
        SSL_SESSION_free(sessions[i]);
    SSL_CTX_free(ctx);
}

/* ---- signal handlers that fork ---- */

static int under_valgrind(void)
{
    const char *preloaded = getenv("LD_PRELOAD");

    return preloaded != NULL && strstr(preloaded, "vgpreload") != NULL;
}

static void fork_and_wait(void)
{
    pid_t child = fork();

    if (child == 0)
        _exit(0);
    if (child > 0)
        waitpid(child, NULL, 0);
}

static void work_and_fork(void)
{
    for (int i = 0; i < 2; i++) {
        SSL_CTX_add_session(ctx, sessions[0]);
        SSL_CTX_remove_session(ctx, sessions[0]);
    }
    fork_and_wait();
}

static volatile sig_atomic_t stepping, signals, stride = 1;
static pid_t stepped;

#ifdef __x86_64__
/* The processor raises SIGTRAP after each instruction while this flag is set. */
#define TRAP_FLAG 0x100

/*
 * Says whether a signal handler of a program could run before the next instruction. glibc 2.41 blocks all signals in the
 * middle of fork(): then none could. The kernel kills a process in which SIGTRAP is raised and blocked, so a system call
 * that would block it is given a set without it.
 */
static int may_interrupt(greg_t *registers)
{
    static uint64_t all_but_sigtrap;
    static greg_t set;
    static int blocked;
    const uint64_t sigtrap = (uint64_t)1 << (SIGTRAP - 1);
    const unsigned char *next = (const unsigned char *)registers[REG_RIP];

    if (set != 0)
        registers[REG_RSI] = set; /* the instruction before was such a one */
    set = 0;
    if (next[0] != 0x0f || next[1] != 0x05 || registers[REG_RAX] != SYS_rt_sigprocmask || registers[REG_RSI] == 0)
        return !blocked;
    memcpy(&all_but_sigtrap, (const void *)registers[REG_RSI], sizeof(all_but_sigtrap));
    if (registers[REG_RDI] == SIG_UNBLOCK) {
        blocked = 0;
    } else if (all_but_sigtrap & sigtrap) {
        blocked = 1;
        all_but_sigtrap &= ~sigtrap;
        set = registers[REG_RSI];
        registers[REG_RSI] = (greg_t)&all_but_sigtrap;
    } else if (registers[REG_RDI] == SIG_SETMASK) {
        blocked = 0;
    }
    return !blocked;
}

static void on_signal(int signal, siginfo_t *info, void *context)
{
    greg_t *flags = &((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL];
    int before = errno;

    (void)signal, (void)info;
    *flags &= ~TRAP_FLAG;
    if (!stepping || getpid() != stepped)
        return;
    *flags |= TRAP_FLAG;
    if (may_interrupt(((ucontext_t *)context)->uc_mcontext.gregs) && signals++ % stride == 0)
        fork_and_wait();
    errno = before;
}

static void interrupt_at_each_instruction(void)
{
    raise(SIGTRAP);
    work_and_fork();
}

enum { SIGNAL = SIGTRAP };
#else
static void on_signal(int signal, siginfo_t *info, void *context)
{
    int before = errno;

    (void)signal, (void)info, (void)context;
    if (stepping && getpid() == stepped) {
        signals++;
        fork_and_wait();
    }
    errno = before;
}

/* Where instructions cannot be stepped through, a timer interrupts at any of them. */
static void interrupt_at_each_instruction(void)
{
    const struct itimerval often = { { 0, 1000 }, { 0, 1000 } }, never = { { 0, 0 }, { 0, 0 } };

    setitimer(ITIMER_PROF, &often, NULL);
    while (signals < 2000)
        work_and_fork();
    setitimer(ITIMER_PROF, &never, NULL);
}

enum { SIGNAL = SIGPROF };
#endif

/* The program with this argument has never had a second thread: with threads, glibc's own fork() waits in a handler. */
#define STEPS "steps"

static int step_through(void)
{
    struct sigaction action;

    alarm(200);
    ctx = SSL_CTX_new(TLS_method());
    sessions[0] = made_session(TLS1_2_VERSION, 1);
    memset(&action, 0, sizeof(action));
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigaction(SIGNAL, &action, NULL);
    work_and_fork(); /* what is allocated or bound at the first call */
    stepped = getpid();
    /* A session in shared memory is written and read by ten times as many instructions. */
    if (shared())
        stride = 23;
    stepping = 1;
    interrupt_at_each_instruction();
    stepping = 0;
    printf("interrupted %d times\n", (int)signals);
    return signals > 1000 ? 0 : 1;
}

/* In a program with one thread fork() may be called by a handler, whatever it interrupts. */
static void a_handler_forks_at_each_instruction(void **state)
{
    int status;
    pid_t child;

    (void)state;
    if (in_redis() || under_valgrind()) /* threads of the cache's own; no single steps */
        skip();
    if ((child = fork()) == 0) {
        execl("/proc/self/exe", "fork_cost", STEPS, NULL);
        _exit(98);
    }
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
}

/* ---- forks that nobody hears of, and forks of the mighty ---- */

static void *add_again(void *arg)
{
    while (!stop)
        SSL_CTX_add_session(ctx, sessions[0]);
    return arg;
}

/* A process made by the system call alone, without the handlers of fork(), forks as others do. */
static void children_without_handlers_fork(void **state)
{
    pthread_t threads[4];
    pid_t child;
    int status = 0;

    (void)state;
    if (shared() || under_valgrind()) /* which may be allocating when it is forked; whose threads rarely take turns */
        skip();
    ctx = SSL_CTX_new(TLS_method());
    sessions[0] = made_session(TLS1_2_VERSION, 1);
    stop = 0;
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, add_again, NULL);
    for (int i = 0; i < FORKS && status == 0; i++) {
        usleep(500);
        if ((child = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL)) == 0) {
            alarm(20);
            fork_and_wait();
            _exit(0);
        }
        waitpid(child, &status, 0);
    }
    stop = 1;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(status, 0);
    SSL_SESSION_free(sessions[0]);
    SSL_CTX_free(ctx);
}

/* ---- what it costs ---- */

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Microseconds of the processor that a fork takes in the parent, in the cheapest of many: whatever else the machine does. */
static double cost_of_fork(void)
{
    double least = 1e9;

    for (int i = 0; i < 41; i++) {
        struct timespec begun, ended;
        double took;
        pid_t child;

        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begun);
        child = fork();
        if (child == 0)
            _exit(0);
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ended);
        took = (double)(ended.tv_sec - begun.tv_sec) * 1e6 + (double)(ended.tv_nsec - begun.tv_nsec) / 1e3;
        least = took < least ? took : least;
        waitpid(child, NULL, 0);
    }
    return least;
}

static void a_fork_with_a_thousand_contexts(void **state)
{
    static SSL_CTX *all[CONTEXTS];
    const int contexts = fewer(CONTEXTS);
    double few = 0, many;

    (void)state;
    for (int i = 0; i < contexts; i++) {
        all[i] = SSL_CTX_new(TLS_method());
        if (i == 0)
            few = cost_of_fork();
        /* What memory there is costs on libssl alone, too: sessions in some. */
        if (i % 10 == 0) {
            SSL_SESSION *session = made_session(TLS1_2_VERSION, 1);

            SSL_CTX_add_session(all[i], session);
            SSL_SESSION_free(session);
        }
    }
    many = cost_of_fork();
    printf("fork: %.0f us with one context, %.0f us with %d\n", few, many, contexts);
    /* Libssl alone: 2 to 3 times as much, for the memory. With locks for each context it was a hundred times as much. */
    if (!slowly())
        assert_true(many < few * 10 + 2000);
    for (int i = 0; i < contexts; i++)
        SSL_CTX_free(all[i]);
}

/* A thread that others of its processor never interrupt forks while one of those is at work in the cache. */
static void a_realtime_thread_forks(void **state)
{
    enum { TIMES = 150 };
    const struct sched_param first = { .sched_priority = 1 }, usual = { .sched_priority = 0 };
    const struct timespec pause = { 0, 3000000 };
    pthread_t thread;
    cpu_set_t before, one;
    double begun;

    (void)state;
    if (under_valgrind())
        skip();
    sched_getaffinity(0, sizeof(before), &before);
    CPU_ZERO(&one);
    CPU_SET((size_t)sched_getcpu(), &one);
    ctx = SSL_CTX_new(TLS_method());
    sessions[0] = made_session(TLS1_2_VERSION, 1);
    stop = 0;
    sched_setaffinity(0, sizeof(one), &one);
    pthread_create(&thread, NULL, add_again, NULL);
    if (pthread_setschedparam(pthread_self(), SCHED_FIFO, &first) == 0) {
        begun = seconds();
        for (int i = 0; i < TIMES; i++) {
            nanosleep(&pause, NULL);
            fork_and_wait();
        }
        pthread_setschedparam(pthread_self(), SCHED_OTHER, &usual);
        printf("%d forks of a realtime thread: %.1f s\n", TIMES, seconds() - begun);
        /* Where it yields only, the system lets the other thread run once in a second. */
        assert_true(seconds() - begun < 10);
    }
    stop = 1;
    pthread_join(thread, NULL);
    sched_setaffinity(0, sizeof(before), &before);
    SSL_SESSION_free(sessions[0]);
    SSL_CTX_free(ctx);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        OBJECT_TEST(children_mark_sessions),
        OBJECT_TEST(statistics_in_grandchildren),
        RULE_TEST(a_handler_forks_at_each_instruction),
        RULE_TEST(children_without_handlers_fork),
        RULE_TEST(a_realtime_thread_forks),
        RULE_TEST(a_fork_with_a_thousand_contexts),
    };

    if (argc > 1 && strcmp(argv[1], STEPS) == 0)
        return step_through();
    return RUN_PAGE("fork_cost", tests);
}
