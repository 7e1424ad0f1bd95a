// Every access of a kernel: counted, in bounds, aligned, ordered. See hlrc_emu.h.
#include "state.h"

#include <algorithm>

namespace emu {

// Whether `a` is ordered before an access by `t` of the same block.
static bool ordered(const Block& b, const Thread& t, const Access& a) {
    if (a.thread == t.linear || a.epoch != b.epoch) return true;
    return a.thread / 32 == t.linear / 32 && a.warp_epoch != b.warp_epoch[t.linear / 32];
}

static void touch_shared(size_t offset, unsigned bytes, bool write) {
    Machine& m = *machine;
    Block& b = *m.block;
    const Thread& t = *m.thread;
    while (bytes) {
        SharedWord& word = b.shared_words[offset / 4];
        const unsigned n = std::min(bytes, 4 - unsigned(offset % 4));
        const uint8_t mask = uint8_t(((1u << n) - 1) << (offset % 4));
        const Access now = {b.epoch, b.warp_epoch[t.linear / 32], uint16_t(t.linear), mask};
        if ((word.write.bytes & mask) && !ordered(b, t, word.write))
            fail("race: it %s byte %zu of shared memory that thread %u wrote, with no barrier between", write ? "writes" : "reads", offset,
                 word.write.thread);
        if (write) {
            for (const Access& r : word.read)
                if ((r.bytes & mask) && !ordered(b, t, r))
                    fail("race: it writes byte %zu of shared memory that thread %u read, with no barrier between", offset, r.thread);
            word.write = now;
        } else {
            // Keep the reader that a later write is most likely to race with: the latest of two threads.
            Access& slot = word.read[0].thread == t.linear || ordered(b, t, word.read[0]) || !word.read[0].bytes ? word.read[0] : word.read[1];
            slot = now;
        }
        offset += n;
        bytes -= n;
    }
}

static void touch_global(size_t index, size_t offset, unsigned bytes, bool write) {
    Machine& m = *machine;
    Block& b = *m.block;
    const Thread& t = *m.thread;
    HlrcEmuBuffer& buffer = m.launch->buffers[index];
    Shadow& shadow = m.shadows[index];
    auto& bits = write ? shadow.stored : shadow.loaded;
    for (unsigned i = 0; i < bytes; i++) bits[(offset + i) / 8] |= 1u << ((offset + i) % 8);
    if (write) {
        if (!buffer.writable) fail("it writes to %s, which is an input", buffer.name);
        buffer.stored += bytes;
        if (shadow.words.empty()) shadow.words.resize(buffer.bytes / 4 + 1);
    } else {
        buffer.loaded += bytes;
        b.sectors[index][offset / 32 / 8] |= 1u << (offset / 32 % 8);
        if (shadow.words.empty()) return;
    }
    const uint64_t time = ++m.time;
    while (bytes) {
        GlobalWord& word = shadow.words[offset / 4];
        const unsigned n = std::min(bytes, 4 - unsigned(offset % 4));
        const uint8_t mask = uint8_t(((1u << n) - 1) << (offset % 4));
        if (word.write.bytes & mask) {
            // The writer's block released after the write, this block acquired after that; within
            // a block a barrier will do too.
            const bool published = m.released[word.block] > word.time && b.acquired > word.time;
            if (!published && !(word.block == b.linear && ordered(b, t, word.write)))
                fail("race: it %s byte %zu of %s that thread %u of block %u wrote, with nothing that orders the two", write ? "writes" : "reads",
                     offset, buffer.name, word.write.thread, word.block);
        }
        if (write) word = {{b.epoch, b.warp_epoch[t.linear / 32], uint16_t(t.linear), mask}, b.linear, time};
        offset += n;
        bytes -= n;
    }
}

void access(const void* address, unsigned bytes, bool write) {
    if (!machine || !machine->thread) return;
    Machine& m = *machine;
    const uintptr_t a = reinterpret_cast<uintptr_t>(address);
    if (a - reinterpret_cast<uintptr_t>(stacks) < stacks_bytes) return;
    Block& b = *m.block;
    const size_t static_bytes = m.image.shared_stop - m.image.shared_start;
    const bool aligned = (bytes & (bytes - 1)) || a % bytes == 0;
    const uintptr_t in_static = a - reinterpret_cast<uintptr_t>(m.image.shared_start);
    const uintptr_t in_dynamic = a - reinterpret_cast<uintptr_t>(b.dynamic_shared);
    if (in_static < static_bytes || in_dynamic < m.launch->dynamic_shared) {
        if (!aligned) fail("misaligned access of %u bytes to shared memory", bytes);
        const bool fits = in_static < static_bytes ? in_static + bytes <= static_bytes : in_dynamic + bytes <= m.launch->dynamic_shared;
        if (!fits) fail("an access of %u bytes runs over the end of shared memory", bytes);
        return touch_shared(in_static < static_bytes ? in_static : (static_bytes + 3) / 4 * 4 + in_dynamic, bytes, write);
    }
    const auto inside = [&](size_t i) { return a - reinterpret_cast<uintptr_t>(m.launch->buffers[i].base) < m.launch->buffers[i].bytes; };
    size_t found = m.launch->buffer_count;
    if (m.last_buffer < m.launch->buffer_count && inside(m.last_buffer)) found = m.last_buffer;
    for (size_t i = 0; found == m.launch->buffer_count && i < m.launch->buffer_count; i++)
        if (inside(i)) found = i;
    if (found < m.launch->buffer_count) {
        m.last_buffer = found;
        const HlrcEmuBuffer& buffer = m.launch->buffers[found];
        const size_t offset = a - reinterpret_cast<uintptr_t>(buffer.base);
        if (!aligned) fail("misaligned access of %u bytes to %s, at byte %zu", bytes, buffer.name, offset);
        if (offset + bytes > buffer.bytes) fail("an access of %u bytes runs over the end of %s", bytes, buffer.name);
        return touch_global(found, offset, bytes, write);
    }
    if (!write && a >= reinterpret_cast<uintptr_t>(m.image.start) && a < reinterpret_cast<uintptr_t>(m.image.end)) return; // a constant
    const char* nearest = "any buffer";
    long distance = 1L << 40;
    for (size_t i = 0; i < m.launch->buffer_count; i++) {
        const long over = long(a - reinterpret_cast<uintptr_t>(m.launch->buffers[i].base)) - long(m.launch->buffers[i].bytes);
        if (over >= 0 && over < distance) {
            distance = over;
            nearest = m.launch->buffers[i].name;
        }
    }
    fail("%s of %u bytes out of bounds, %ld bytes behind %s", write ? "a store" : "a load", bytes, distance, nearest);
}

void forget_writer(const void* address) {
    Machine& m = *machine;
    for (size_t i = 0; i < m.launch->buffer_count; i++) {
        const size_t offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(m.launch->buffers[i].base);
        if (offset < m.launch->buffers[i].bytes && !m.shadows[i].words.empty()) m.shadows[i].words[offset / 4] = GlobalWord{};
    }
    const uintptr_t a = reinterpret_cast<uintptr_t>(address);
    const size_t static_bytes = m.image.shared_stop - m.image.shared_start;
    const uintptr_t in_static = a - reinterpret_cast<uintptr_t>(m.image.shared_start);
    const uintptr_t in_dynamic = a - reinterpret_cast<uintptr_t>(m.block->dynamic_shared);
    if (in_static < static_bytes) m.block->shared_words[in_static / 4] = SharedWord{};
    else if (in_dynamic < m.launch->dynamic_shared) m.block->shared_words[(static_bytes + 3) / 4 + in_dynamic / 4] = SharedWord{};
}

static void copy_arrives(const Copy& c) {
    access(c.to, c.bytes, true);
    memset(c.to, 0, c.bytes);
    if (c.valid) memcpy(c.to, c.from, c.valid);
}
} // namespace emu

using namespace emu;

extern "C" {
unsigned hlrc_emu_atomic(int op, void* address, unsigned value, unsigned compare) {
    Machine& m = *machine;
    access(address, 4, false); // orders against plain accesses
    forget_writer(address);
    unsigned old;
    memcpy(&old, address, 4);
    float sum;
    unsigned next = value;
    switch (op) {
    case HLRC_EMU_ADD: next = old + value; break;
    case HLRC_EMU_ADD_FLOAT: {
        float a, b;
        memcpy(&a, &old, 4);
        memcpy(&b, &value, 4);
        sum = a + b;
        memcpy(&next, &sum, 4);
        break;
    }
    case HLRC_EMU_MIN: next = unsigned(std::min(int(old), int(value))); break;
    case HLRC_EMU_MAX: next = unsigned(std::max(int(old), int(value))); break;
    case HLRC_EMU_MAX_UNSIGNED: next = std::max(old, value); break;
    case HLRC_EMU_OR: next = old | value; break;
    case HLRC_EMU_CAS: next = old == compare ? value : old; break;
    default: break;
    }
    access(address, 4, true);
    memcpy(address, &next, 4);
    forget_writer(address);
    m.thread->spinning = false;
    if (m.launch->schedule == 2 && m.next_random() % 2) suspend(State::Ready);
    return old;
}

unsigned long long hlrc_emu_atomic_add64(void* address, unsigned long long value) {
    unsigned char* halves = static_cast<unsigned char*>(address);
    access(address, 8, false);
    forget_writer(halves);
    forget_writer(halves + 4);
    access(address, 8, true);
    unsigned long long old;
    memcpy(&old, address, 8);
    const unsigned long long next = old + value;
    memcpy(address, &next, 8);
    forget_writer(halves);
    forget_writer(halves + 4);
    machine->thread->spinning = false;
    if (machine->launch->schedule == 2 && machine->next_random() % 2) suspend(State::Ready);
    return old;
}

unsigned hlrc_emu_acquire(const void* address) {
    Machine& m = *machine;
    Thread& t = *m.thread;
    unsigned value;
    forget_writer(address);
    access(address, 4, false);
    memcpy(&value, address, 4);
    t.spinning = t.polled == address && t.polled_value == value;
    if (t.spinning || m.launch->schedule == 2) suspend(State::Ready); // someone else's turn
    memcpy(&value, address, 4);
    t.spinning = false;
    t.polled = address;
    t.polled_value = value;
    m.block->acquired = ++m.time;
    return value;
}

void hlrc_emu_release(void* address, unsigned value) {
    Machine& m = *machine;
    m.released[m.block->linear] = ++m.time;
    forget_writer(address);
    access(address, 4, true);
    memcpy(address, &value, 4);
    forget_writer(address);
}

void hlrc_emu_fence() {
    machine->released[machine->block->linear] = ++machine->time;
    machine->block->acquired = ++machine->time;
}

void hlrc_emu_row(const void* address, unsigned* words) {
    access(address, 16, false);
    memcpy(words, address, 16);
}

// The bytes arrive when the thread waits; until then the destination is poisoned.
void hlrc_emu_async_copy(void* shared, const void* global, int bytes, int valid) {
    Thread& t = *machine->thread;
    if (reinterpret_cast<uintptr_t>(shared) % bytes || reinterpret_cast<uintptr_t>(global) % bytes)
        fail("a misaligned asynchronous copy of %d bytes", bytes);
    if (valid) access(global, valid, false);
    access(shared, bytes, true);
    memset(shared, 0xff, bytes);
    t.copies.push_back({static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), bytes, valid, t.committed});
}
void hlrc_emu_async_commit() { machine->thread->committed++; }
void hlrc_emu_async_wait(int groups) {
    Thread& t = *machine->thread;
    const int done = t.committed - groups; // groups with a lower number have arrived
    size_t kept = 0;
    for (const Copy& c : t.copies) {
        if (c.group < done) copy_arrives(c);
        else t.copies[kept++] = c;
    }
    t.copies.resize(kept);
}

// Hooks of -fsanitize=thread.
#define HLRC_EMU_HOOK(n)                                                                            \
    void __tsan_read##n(void* p) { access(p, n, false); }                                           \
    void __tsan_write##n(void* p) { access(p, n, true); }                                           \
    void __tsan_volatile_read##n(void* p) { access(p, n, false); }                                  \
    void __tsan_volatile_write##n(void* p) { access(p, n, true); }                                  \
    void __tsan_unaligned_read##n(void* p) { access(p, n, false); }                                 \
    void __tsan_unaligned_write##n(void* p) { access(p, n, true); }
HLRC_EMU_HOOK(1)
HLRC_EMU_HOOK(2)
HLRC_EMU_HOOK(4)
HLRC_EMU_HOOK(8)
HLRC_EMU_HOOK(16)
static void range(char* p, size_t bytes, bool write) {
    for (; bytes >= 4 && reinterpret_cast<uintptr_t>(p) % 4 == 0; p += 4, bytes -= 4) access(p, 4, write);
    for (; bytes; p++, bytes--) access(p, 1, write);
}
void __tsan_read_range(void* p, size_t bytes) { range(static_cast<char*>(p), bytes, false); }
void __tsan_write_range(void* p, size_t bytes) { range(static_cast<char*>(p), bytes, true); }
void __tsan_vptr_update(void*, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// Hook of -fsanitize=alignment: compilers split wide accesses, so their alignment is checked at the type.
struct Mismatch {
    const char* file;
    uint32_t line, column;
    const void* type;
    unsigned char log_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(Mismatch* where, uintptr_t address) {
    if (!machine || !machine->thread) return;
    fail("misaligned access at %s:%u: address %#lx is no multiple of %u", where->file, where->line, (unsigned long)address, 1u << where->log_alignment);
}
}
