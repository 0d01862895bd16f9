/* >>parallel: the same bits for any number of threads, any split into pieces, any order and grouping of heads, and from
   run to run. The whole program also runs under ThreadSanitizer. */
#include "test.h"

static svg2_desc desc_of(int mode)
{
    svg2_desc d = desc_small(6, 450, 40);
    d.heads_kv = mode & 1 ? 2 : 0;
    d.tail = (svg2_tail_kind)(1 + mode % 3);
    d.budget = mode & 2 ? SVG2_BUDGET_ROW : SVG2_BUDGET_HEAD;
    d.route = mode & 4 ? SVG2_ROUTE_MASS : SVG2_ROUTE_SPREAD;
    if (mode >= 6) d.target_error = 0.15f;
    if (mode == 5) { d.text_tokens = 40; d.text_valid = 23; }
    if (mode == 3) { d.out.dtype = SVG2_BF16; d.k.dtype = SVG2_F16; d.state_dtype = SVG2_BF16; }
    d.query_clusters = 13; d.key_clusters = 37;
    d.init_iterations = 4;
    return d;
}

static void test_threads(void **state)
{
    (void)state;
    for (int mode = 0; mode < 9; ++mode) {
        uint64_t want[3] = {0, 0, 0};
        for (int run = 0; run < 8; ++run) { /* serial, 1, 2, 3, 4 threads, three kinds of scattered pieces */
            int32_t threads = run ? run : 1;
            uint64_t seed = (uint64_t)run;
            svg2_parallel p = run >= 5 ? pool_scattered(&seed) : pool_threads(&threads);
            svg2_backend backend = svg2_cpu_backend(run ? &p : 0);
            job j;
            job_make(&j, desc_of(mode), &backend, BHSD, 5);
            for (int step = 0; step < 3; ++step) {
                job_run(&j, step);
                uint64_t got = job_hash(&j);
                svg2_plan plan = svg2_plan_view(&backend, &j.d, step, j.work);
                got ^= mem_hash(plan.map, (size_t)(6 * plan.query_blocks * plan.key_blocks));
                got ^= mem_hash(plan.query_centroid, (size_t)(6 * plan.query_clusters * 40) * 4);
                for (int h = 0; h < 6; ++h) got = got * 31 + (uint64_t)j.stats[h].pairs + mem_hash(&j.stats[h].error_estimate, 4);
                if (!run) want[step] = got;
                if (got != want[step]) fail_msg("mode %d run %d step %d: other bits", mode, run, step);
            }
            mem_done();
        }
    }
}

static void test_threads_dense(void **state)
{
    (void)state;
    uint64_t want = 0;
    for (int run = 0; run < 6; ++run) {
        int32_t threads = run ? run : 1;
        uint64_t seed = (uint64_t)run;
        svg2_parallel p = run >= 4 ? pool_scattered(&seed) : pool_threads(&threads);
        svg2_backend backend = svg2_cpu_backend(run ? &p : 0);
        svg2_desc d = desc_of(0);
        job j;
        d.method = SVG2_METHOD_DENSE;
        job_make(&j, d, &backend, BSHD, 5);
        job_run(&j, 0);
        if (!run) want = job_hash(&j);
        assert_true(job_hash(&j) == want);
        mem_done();
    }
}

/* Heads (with their key heads) in another order, or in two calls, or as batch entries. */
static void test_heads(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    for (int mode = 0; mode < 9; ++mode) {
        svg2_desc d = desc_of(mode);
        job whole, moved, part[2];
        int group, units;
        job_make(&whole, d, &backend, BHSD, 5);
        group = whole.d.heads / whole.d.heads_kv;
        units = whole.d.heads_kv; /* what can be moved: a key head with its queries */
        job_make(&moved, d, &backend, BHSD, 5);
        svg2_desc half = d;
        half.heads = d.heads / 2;
        half.heads_kv = whole.d.heads_kv / 2;
        for (int i = 0; i < 2; ++i) job_make(&part[i], half, &backend, BHSD, 5);
        size_t q_unit = whole.q.bytes / (size_t)units, k_unit = whole.k.bytes / (size_t)units, v_unit = whole.v.bytes / (size_t)units;
        for (int u = 0; u < units; ++u) {
            int to = (u * 5 + 1) % units; /* a permutation for 2 and 6 */
            memcpy((char *)moved.q.data + (size_t)to * q_unit, (char *)whole.q.data + (size_t)u * q_unit, q_unit);
            memcpy((char *)moved.k.data + (size_t)to * k_unit, (char *)whole.k.data + (size_t)u * k_unit, k_unit);
            memcpy((char *)moved.v.data + (size_t)to * v_unit, (char *)whole.v.data + (size_t)u * v_unit, v_unit);
            job *p = &part[u / (units / 2)];
            size_t at = (size_t)(u % (units / 2));
            memcpy((char *)p->q.data + at * q_unit, (char *)whole.q.data + (size_t)u * q_unit, q_unit);
            memcpy((char *)p->k.data + at * k_unit, (char *)whole.k.data + (size_t)u * k_unit, k_unit);
            memcpy((char *)p->v.data + at * v_unit, (char *)whole.v.data + (size_t)u * v_unit, v_unit);
        }
        for (int step = 0; step < 3; ++step) {
            job_run(&whole, step);
            job_run(&moved, step);
            job_run(&part[0], step);
            job_run(&part[1], step);
            size_t o_unit = whole.out.bytes / (size_t)units, l_unit = (size_t)(group * whole.d.tokens);
            for (int u = 0; u < units; ++u) {
                int to = (u * 5 + 1) % units, at = u % (units / 2);
                const job *p = &part[u / (units / 2)];
                assert_memory_equal((char *)moved.out.data + (size_t)to * o_unit, (char *)whole.out.data + (size_t)u * o_unit, o_unit);
                assert_memory_equal(moved.lse + (size_t)to * l_unit, whole.lse + (size_t)u * l_unit, l_unit * 4);
                assert_memory_equal((char *)p->out.data + (size_t)at * o_unit, (char *)whole.out.data + (size_t)u * o_unit, o_unit);
                assert_memory_equal(p->lse + (size_t)at * l_unit, whole.lse + (size_t)u * l_unit, l_unit * 4);
            }
        }
        mem_done();
    }
}

/* Batch entries are heads of another name; layout does not change a bit. */
static void test_batch_and_layout(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    for (int mode = 0; mode < 9; ++mode) {
        svg2_desc d = desc_of(mode), two = d;
        job whole, batch, strided;
        job_make(&whole, d, &backend, BHSD, 5);
        two.batch = 2; two.heads = 3; two.heads_kv = d.heads_kv ? 1 : 0;
        job_make(&batch, two, &backend, BHSD, 5);
        job_make(&strided, d, &backend, BSHD, 5);
        memcpy(batch.q.data, whole.q.data, whole.q.bytes);
        memcpy(batch.k.data, whole.k.data, whole.k.bytes);
        memcpy(batch.v.data, whole.v.data, whole.v.bytes);
        for (int step = 0; step < 2; ++step) {
            job_run(&whole, step);
            job_run(&batch, step);
            job_run(&strided, step);
            assert_memory_equal(batch.out.data, whole.out.data, whole.out.bytes);
            const double *a = tensor_f64(&whole.out), *b = tensor_f64(&strided.out);
            assert_memory_equal(a, b, sizeof(double) * 6 * 450 * 40);
            assert_memory_equal(whole.lse, strided.lse, 6 * 450 * 4);
        }
        mem_done();
    }
}

/* Two states on two threads at once do not know of each other. */
static void *attend_thread(void *p)
{
    job *j = (job *)p;
    for (int step = 0; step < 3; ++step) job_try(j, step);
    return 0;
}
static void test_two_states_at_once(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    job one, two;
    job_make(&one, desc_of(0), &backend, BHSD, 5);
    job_make(&two, desc_of(0), &backend, BHSD, 6);
    attend_thread(&one);
    attend_thread(&two);
    uint64_t a = job_hash(&one), b = job_hash(&two);
    pthread_t id;
    svg2_state_reset(&one.state);
    svg2_state_reset(&two.state);
    pthread_create(&id, 0, attend_thread, &one);
    attend_thread(&two);
    pthread_join(id, 0);
    assert_true(a == job_hash(&one) && b == job_hash(&two) && a != b);
}

/* workers: 0 means one; a runner is called for work to share out, and never with a bad range. */
static int64_t runner_items;
static void runner(void *user, svg2_task_fn *fn, void *task, int64_t count, int64_t grain)
{
    assert_true(count >= 0 && grain >= 1);
    runner_items += count;
    (void)user;
    if (count) fn(task, 0, count, 0);
}
static void test_one_worker(void **state)
{
    (void)state;
    svg2_parallel p;
    job serial, with;
    svg2_backend backend = svg2_cpu_backend(0);
    job_make(&serial, desc_of(1), &backend, BHSD, 5);
    job_run(&serial, 0);
    for (int workers = 0; workers < 3; ++workers) {
        p.run = runner; p.user = 0; p.workers = workers;
        backend = svg2_cpu_backend(&p);
        job_make(&with, desc_of(1), &backend, BHSD, 5);
        runner_items = 0;
        job_run(&with, 0);
        if (workers == 2) assert_true(runner_items > 0);
        assert_true(job_hash(&serial) == job_hash(&with));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_threads), TEST(test_threads_dense), TEST(test_heads), TEST(test_batch_and_layout),
                                       TEST(test_two_states_at_once), TEST(test_one_worker)};
    return cmocka_run_group_tests_name("parallel", tests, 0, 0);
}
