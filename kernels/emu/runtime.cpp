// Scheduler of the emulation: fibers, blocks, barriers. See hlrc_emu.h.
#include "state.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <numeric>

namespace emu {
Machine* machine = nullptr;
unsigned char* stacks = nullptr;
size_t stacks_bytes = 0;

extern "C" void hlrc_emu_switch(void** save, void* load);
extern "C" void hlrc_emu_first();
#if defined(__x86_64__)
asm(R"(
.text
.globl hlrc_emu_switch
.type hlrc_emu_switch,@function
hlrc_emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size hlrc_emu_switch,.-hlrc_emu_switch
)");
static void* first_frame(unsigned char* top, void (*entry)()) {
    void** sp = reinterpret_cast<void**>(top - 64);
    sp[0] = reinterpret_cast<void*>(entry);
    sp[1] = nullptr;
    sp -= 6;
    memset(sp, 0, 48);
    return sp;
}
#elif defined(__aarch64__)
asm(R"(
.text
.globl hlrc_emu_switch
.type hlrc_emu_switch,%function
hlrc_emu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0];  stp x21, x22, [sp, #16]; stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]; stp x27, x28, [sp, #64]; stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96];   stp d10, d11, [sp, #112]; stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0];  ldp x21, x22, [sp, #16]; ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]; ldp x27, x28, [sp, #64]; ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96];   ldp d10, d11, [sp, #112]; ldp d12, d13, [sp, #128]; ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size hlrc_emu_switch,.-hlrc_emu_switch
)");
static void* first_frame(unsigned char* top, void (*entry)()) {
    void** sp = reinterpret_cast<void**>(top - 64 - 160);
    memset(sp, 0, 160);
    sp[11] = reinterpret_cast<void*>(entry); // x30
    return sp;
}
#else
#error "the emulation switches stacks on x86-64 and AArch64 only"
#endif

void fail(const char* format, ...) {
    Machine& m = *machine;
    char* out = m.launch->error;
    int n = 0;
    if (m.thread)
        n = snprintf(out, sizeof m.launch->error, "block (%u,%u,%u), thread (%u,%u,%u): ", m.block->index[0], m.block->index[1],
                     m.block->index[2], m.thread->index[0], m.thread->index[1], m.thread->index[2]);
    va_list list;
    va_start(list, format);
    vsnprintf(out + n, sizeof m.launch->error - n, format, list);
    va_end(list);
    m.failed = true;
    if (m.thread) {
        void* dead;
        hlrc_emu_switch(&dead, m.host_stack); // the fiber is never resumed
    }
    abort(); // the scheduler calls `report`, not this
}

static void report(const char* format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(machine->launch->error, sizeof machine->launch->error, format, list);
    va_end(list);
    machine->failed = true;
}

void suspend(State state) {
    Machine& m = *machine;
    Thread* t = m.thread;
    t->state = state;
    m.launch->switches++;
    hlrc_emu_switch(&t->stack_pointer, m.host_stack);
}

static void thread_main() {
    machine->body(machine->arguments);
    Machine& m = *machine;
    Block& b = *m.block;
    if (b.waiting)
        fail("it ended while %u threads wait at __syncthreads, %s:%d", b.waiting, b.barrier_file, b.barrier_line);
    b.done++;
    suspend(State::Done);
    abort();
}

static const char* describe(const Block& b, char* out, size_t size) {
    size_t n = 0;
    int shown = 0;
    for (const Thread& t : b.thread) {
        if (t.linear >= b.threads || shown == 4 || n + 160 > size) continue;
        const char* what = t.state == State::Barrier      ? "waits at __syncthreads"
                           : t.state == State::Collective ? "waits for lanes of its warp"
                           : t.spinning                   ? "polls a value that never changes"
                                                          : nullptr;
        if (!what) continue;
        n += snprintf(out + n, size - n, "%sblock %u thread %u %s", shown ? "; " : "", b.linear, t.linear, what);
        if (t.state == State::Barrier) n += snprintf(out + n, size - n, " (line %d)", t.line);
        if (t.state == State::Collective) n += snprintf(out + n, size - n, " (kind %d, mask %08x)", t.kind, t.mask);
        shown++;
    }
    return out;
}

static void put_in_place(Block& b) {
    Machine& m = *machine;
    if (m.block == &b) return;
    const size_t bytes = m.image.shared_stop - m.image.shared_start;
    if (m.block && bytes) memcpy(m.block->static_shared.data(), m.image.shared_start, bytes);
    if (bytes) memcpy(m.image.shared_start, b.static_shared.data(), bytes);
    m.block = &b;
}

static void start_block(unsigned linear, unsigned slot) {
    Machine& m = *machine;
    const HlrcEmuLaunch& l = *m.launch;
    if (m.spare.empty()) m.spare.push_back(std::make_unique<Block>());
    std::unique_ptr<Block> owned = std::move(m.spare.back());
    m.spare.pop_back();
    Block& b = *owned;
    const size_t static_bytes = m.image.shared_stop - m.image.shared_start;
    b.linear = linear;
    b.index[0] = linear % l.grid[0];
    b.index[1] = linear / l.grid[0] % l.grid[1];
    b.index[2] = linear / l.grid[0] / l.grid[1];
    b.threads = l.block[0] * l.block[1] * l.block[2];
    b.done = b.waiting = 0;
    b.epoch = 1;
    b.acquired = 0;
    b.warp_epoch.assign((b.threads + 31) / 32, 1);
    b.static_shared.assign(static_bytes, 0xff); // poison: NaN
    b.dynamic_storage.assign(l.dynamic_shared + 2 * GUARD_BYTES + 1024, 0xff);
    const uintptr_t start = reinterpret_cast<uintptr_t>(b.dynamic_storage.data()) + GUARD_BYTES;
    b.dynamic_shared = reinterpret_cast<unsigned char*>((start + 1023) & ~uintptr_t{1023});
    b.shared_words.assign((static_bytes + 3) / 4 + (l.dynamic_shared + 3) / 4, SharedWord{});
    b.sectors.resize(l.buffer_count);
    for (size_t i = 0; i < l.buffer_count; i++) b.sectors[i].assign((l.buffers[i].bytes / 32 + 8) / 8, 0);
    b.thread.resize(b.threads);
    for (unsigned i = 0; i < b.threads; i++) {
        Thread& t = b.thread[i];
        t.state = State::Ready;
        t.spinning = false;
        t.linear = i;
        t.index[0] = i % l.block[0];
        t.index[1] = i / l.block[0] % l.block[1];
        t.index[2] = i / l.block[0] / l.block[1];
        t.polled = nullptr;
        t.copies.clear();
        t.committed = t.waited = 0;
        t.stack = stacks + (size_t(slot) * b.threads + i) * STACK_BYTES;
        t.stack_pointer = first_frame(t.stack + STACK_BYTES, &thread_main);
        *reinterpret_cast<uint64_t*>(t.stack) = 0x5afe57ac5afe57acULL; // overflow is noticed
    }
    m.resident[slot] = std::move(owned);
}

static void order(std::vector<unsigned>& items, unsigned count) {
    Machine& m = *machine;
    items.resize(count);
    std::iota(items.begin(), items.end(), 0u);
    if (m.launch->schedule == 1) std::reverse(items.begin(), items.end());
    if (m.launch->schedule == 2)
        for (unsigned i = count; i > 1; i--) std::swap(items[i - 1], items[m.next_random() % i]);
}

// Runs threads of a block until all are done, none gets on, or a random schedule turns to another.
static bool run_slice(Block& b) {
    Machine& m = *machine;
    put_in_place(b);
    bool progress = false;
    std::vector<unsigned> warps, lanes;
    for (;;) {
        bool ran = false, moved = false;
        order(warps, (b.threads + 31) / 32);
        for (unsigned w : warps) {
            order(lanes, std::min(32u, b.threads - w * 32));
            for (unsigned lane : lanes) {
                Thread& t = b.thread[w * 32 + lane];
                if (t.state != State::Ready) continue;
                m.thread = &t;
                hlrc_emu_switch(&m.host_stack, t.stack_pointer);
                m.thread = nullptr;
                if (m.failed) return false;
                if (*reinterpret_cast<uint64_t*>(t.stack) != 0x5afe57ac5afe57acULL) {
                    report("block %u, thread %u: its stack of %zu bytes overflowed", b.linear, t.linear, STACK_BYTES);
                    return false;
                }
                ran = true;
                moved |= t.state != State::Ready || !t.spinning;
            }
        }
        progress |= moved;
        if (b.done == b.threads) return true;
        if (!ran) {
            char text[700];
            report("divergence: no thread of a block can go on: %s", describe(b, text, sizeof text));
            return false;
        }
        if (!moved || (m.launch->schedule == 2 && m.next_random() % 2)) return progress;
    }
}

static void run_grid() {
    Machine& m = *machine;
    const HlrcEmuLaunch& l = *m.launch;
    const unsigned blocks = l.grid[0] * l.grid[1] * l.grid[2];
    const unsigned slots = std::min(blocks, std::max(1u, l.resident));
    std::vector<unsigned> slot_order, block_order;
    order(block_order, blocks);
    m.resident.resize(slots);
    m.released.assign(blocks, 0);
    unsigned started = 0, ended = 0, idle = 0;
    while (ended < blocks) {
        for (unsigned s = 0; s < slots && started < blocks; s++)
            if (!m.resident[s]) start_block(block_order[started++], s);
        bool progress = false;
        order(slot_order, slots);
        for (unsigned s : slot_order) {
            if (!m.resident[s]) continue;
            progress |= run_slice(*m.resident[s]);
            if (m.failed) return;
            if (m.resident[s]->done == m.resident[s]->threads) {
                for (size_t i = 0; i < l.buffer_count; i++)
                    for (uint8_t byte : m.resident[s]->sectors[i]) l.buffers[i].sectors_by_block += __builtin_popcount(byte);
                m.block = nullptr; // its shared memory is gone
                m.spare.push_back(std::move(m.resident[s]));
                ended++;
            }
        }
        idle = progress ? 0 : idle + 1;
        if (idle > 100) {
            char text[700] = "";
            for (auto& b : m.resident)
                if (b && !*text) describe(*b, text, sizeof text);
            report("deadlock: %u of %u blocks are resident and none gets on: %s", slots, blocks, text);
            return;
        }
    }
}

static std::mutex one_launch;
} // namespace emu

using namespace emu;

extern "C" {
unsigned hlrc_emu_index(int which) {
    const Machine& m = *machine;
    switch (which / 3) {
    case 0: return m.thread->index[which];
    case 1: return m.block->index[which - 3];
    case 2: return m.launch->block[which - 6];
    default: return m.launch->grid[which - 9];
    }
}
unsigned char* hlrc_emu_dynamic_shared() { return machine->block->dynamic_shared; }

void hlrc_emu_barrier(const char* file, int line) {
    Block& b = *machine->block;
    Thread& t = *machine->thread;
    if (b.done) fail("__syncthreads at %s:%d is never complete: %u threads ended", file, line, b.done);
    if (b.waiting && (b.barrier_line != line || strcmp(b.barrier_file, file) != 0))
        fail("divergent barrier: it is at %s:%d, others wait at %s:%d", file, line, b.barrier_file, b.barrier_line);
    b.barrier_file = t.file = file;
    b.barrier_line = t.line = line;
    t.spinning = false;
    if (++b.waiting < b.threads) return suspend(State::Barrier);
    b.waiting = 0;
    b.epoch++;
    machine->launch->barriers++;
    for (Thread& other : b.thread) other.state = State::Ready;
    suspend(State::Ready); // so that the last to arrive is not always the first to go on
}

void hlrc_emu_collective(int kind, unsigned mask, const unsigned* in, int words, int param, unsigned* out, int results) {
    Block& b = *machine->block;
    Thread& t = *machine->thread;
    const unsigned first = t.linear & ~31u, lanes = std::min(32u, b.threads - first);
    if (lanes < 32) mask &= (1u << lanes) - 1;
    if (!(mask >> (t.linear & 31) & 1)) fail("a lane calls a warp function with mask %08x, which leaves it out", mask);
    t.kind = kind;
    t.mask = mask;
    t.words = words;
    t.param = param;
    t.results = results;
    t.spinning = false;
    for (int i = 0; i < words; i++) t.in[i] = in[i];
    bool all = true;
    for (unsigned i = 0; i < lanes; i++) {
        const Thread& other = b.thread[first + i];
        if (!(mask >> i & 1) || &other == &t) continue;
        if (other.state == State::Done) fail("a warp function with mask %08x: lane %u has ended", mask, i);
        if (other.state != State::Collective) {
            all = false;
            continue;
        }
        if (other.kind != kind || other.mask != mask)
            fail("divergent warp: it calls kind %d with mask %08x, lane %u kind %d with mask %08x", kind, mask, i, other.kind, other.mask);
    }
    if (all) {
        complete_collective(b, first, mask);
        for (unsigned i = 0; i < lanes; i++)
            if (mask >> i & 1) b.thread[first + i].state = State::Ready;
        suspend(State::Ready);
    } else {
        suspend(State::Collective);
    }
    for (int i = 0; i < results; i++) out[i] = t.out[i];
}

void hlrc_emu_yield() {
    // Alone this is no progress: a loop that only yields never ends.
    machine->thread->spinning = true;
    suspend(State::Ready);
    machine->thread->spinning = false;
}

void hlrc_emu_trap(const char* message) { fail("%s", message); }

int hlrc_emu_launch(HlrcEmuLaunch* launch, const HlrcEmuImage* image, void (*body)(void* const*), void* const* arguments) {
    std::lock_guard<std::mutex> lock(one_launch);
    Machine m{};
    machine = &m;
    m.launch = launch;
    m.image = *image;
    m.body = body;
    m.arguments = arguments;
    m.random = launch->seed * 0x9e3779b97f4a7c15ULL | 1;
    launch->error[0] = 0;
    launch->barriers = launch->switches = 0;
    launch->static_shared = image->shared_stop - image->shared_start;
    m.shadows.resize(launch->buffer_count);
    for (size_t i = 0; i < launch->buffer_count; i++) {
        HlrcEmuBuffer& buffer = launch->buffers[i];
        buffer.loaded = buffer.stored = buffer.loaded_unique = buffer.stored_unique = buffer.sectors_by_block = 0;
        m.shadows[i].loaded.assign(buffer.bytes / 8 + 1, 0);
        m.shadows[i].stored.assign(buffer.bytes / 8 + 1, 0);
    }
    const uint64_t threads = uint64_t(launch->block[0]) * launch->block[1] * launch->block[2];
    const uint64_t blocks = uint64_t(launch->grid[0]) * launch->grid[1] * launch->grid[2];
    if (threads == 0 || threads > 1024 || blocks == 0 || blocks > 1u << 31) {
        report("a grid of %llu blocks of %llu threads can't be launched", (unsigned long long)blocks, (unsigned long long)threads);
    } else if (launch->static_shared + launch->dynamic_shared > launch->shared_limit) {
        report("%llu bytes of static and %llu of dynamic shared memory exceed %llu", (unsigned long long)launch->static_shared,
               (unsigned long long)launch->dynamic_shared, (unsigned long long)launch->shared_limit);
    } else {
        const size_t bytes = std::min<uint64_t>(blocks, std::max(1u, launch->resident)) * threads * STACK_BYTES;
        void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) {
            report("no memory for the stacks of %llu threads", (unsigned long long)threads);
        } else {
            stacks = static_cast<unsigned char*>(p);
            stacks_bytes = bytes;
            run_grid();
            munmap(p, bytes);
            stacks_bytes = 0;
        }
    }
    for (size_t i = 0; i < launch->buffer_count; i++) {
        for (uint8_t byte : m.shadows[i].loaded) launch->buffers[i].loaded_unique += __builtin_popcount(byte);
        for (uint8_t byte : m.shadows[i].stored) launch->buffers[i].stored_unique += __builtin_popcount(byte);
    }
    machine = nullptr;
    return m.failed ? 1 : 0;
}
}
