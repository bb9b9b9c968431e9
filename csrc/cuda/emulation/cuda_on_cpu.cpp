// The fibers that a grid's threads run as, and what their barriers do.
#include "cuda_on_cpu.hpp"

#include <sys/mman.h>

#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulation {
namespace {

constexpr std::size_t kStackBytes = 256 << 10;
// How far a stack may start below its end.
constexpr std::size_t kColourBytes = 64 * 192;
constexpr std::size_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xA5;
// A NaN in every floating type, -1 in every integer.
constexpr unsigned char kPoison = 0xFF;

#ifdef __x86_64__
struct Context {
    void* stack_pointer = nullptr;
};
// Saves the callee-saved registers and the stack pointer, and takes up the other side's.
extern "C" void slimfast_switch_stack(void** save, void* load);
asm(R"(
.text
.globl slimfast_switch_stack
.hidden slimfast_switch_stack
.type slimfast_switch_stack, @function
slimfast_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size slimfast_switch_stack, .-slimfast_switch_stack
)");
void enter(Context& from, Context& to) { slimfast_switch_stack(&from.stack_pointer, to.stack_pointer); }
void prepare(Context& context, unsigned char* stack, void (*start)()) {
    // Six zero registers, then the address to return to; the ABI wants rsp + 8 on a 16-byte boundary at
    // entry.
    auto* top = reinterpret_cast<void**>(stack + kStackBytes - 64);
    top[6] = reinterpret_cast<void*>(start);
    std::fill(top, top + 6, nullptr);
    top[7] = nullptr;
    context.stack_pointer = top;
}
#else
struct Context {
    ucontext_t value;
};
void enter(Context& from, Context& to) { swapcontext(&from.value, &to.value); }
void prepare(Context& context, unsigned char* stack, void (*start)()) {
    getcontext(&context.value);
    context.value.uc_stack.ss_sp = stack;
    context.value.uc_stack.ss_size = kStackBytes;
    context.value.uc_link = nullptr;
    makecontext(&context.value, start, 0);
}
#endif

enum class State { kReady, kAtWarp, kAtBlock, kAtCluster, kDone };

// Where a set of threads waits for its last member.
struct Meeting {
    unsigned arrived = 0;
    Site site{};
};

struct Warp {
    Meeting meeting;
    // Two sets: a lane may bring its next value while another still reads the last.
    std::uint64_t values[2][32];
};

struct Fiber {
    Context context;
    State state;
    unsigned block, thread;
    unsigned exchanges;
    // Does not run before this round: what a barrier lets go starts in the order of the threads, all of them.
    std::uint64_t round;
    Site site;
};

struct Block {
    Index index;
    Meeting meeting;
    unsigned exited;
    std::vector<unsigned char> shared;
};

bool same(Site a, Site b) {
    return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string text(Site site) {
    const std::string file = site.file;
    return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
}

struct Machine {
    const char* name = "";
    unsigned threads = 0;
    const std::function<void()>* body = nullptr;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<Block> blocks;
    Meeting cluster;
    Fiber* current = nullptr;
    std::uint64_t round = 0;
    Context scheduler;
    std::string error;
    int skipped_line = 0;
    std::vector<Site> sites;
    std::mt19937_64 random;
    std::vector<unsigned char*> stacks;
};

Machine& machine() {
    static Machine instance;
    return instance;
}

void leave(State state) {
    Machine& m = machine();
    m.current->state = state;
    enter(m.current->context, m.scheduler);
}

[[noreturn]] void fail(const std::string& message) {
    machine().error = message;
    while (true) leave(State::kDone);
}

void run_body() {
    Machine& m = machine();
    (*m.body)();
    // Peers that read the memory of a block that has ended read NaN.
    Block& block = m.blocks[m.current->block];
    if (++block.exited == m.threads)
        std::fill(block.shared.begin(), block.shared.end() - kGuardBytes, kPoison);
    while (true) leave(State::kDone);
}

unsigned char* stack(std::size_t index) {
    Machine& m = machine();
    while (m.stacks.size() <= index) {
        void* memory = mmap(nullptr, kStackBytes + kColourBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        m.stacks.push_back(static_cast<unsigned char*>(memory) + kColourBytes);
    }
    // Not all on the same cache lines: fibers take turns often.
    return m.stacks[index] - index % 64 * 192;
}

std::string who(const Fiber& fiber) {
    return "thread " + std::to_string(fiber.thread) + " of block " +
           std::to_string(machine().blocks[fiber.block].index.x);
}

// The current fiber joins `meeting`; true for the last of `expected`, which must then release the others.
bool arrive(Meeting& meeting, Site site, unsigned expected, const char* what) {
    Fiber& me = *machine().current;
    me.site = site;
    if (meeting.arrived > 0 && !same(meeting.site, site)) {
        fail(std::string(what) + " at " + text(meeting.site) + " for some threads and at " + text(site) +
             " for " + who(me));
    }
    meeting.site = site;
    if (++meeting.arrived < expected) return false;
    meeting.arrived = 0;
    return true;
}

void release(Fiber& fiber) {
    fiber.state = State::kReady;
    fiber.round = machine().round + 1;
}

// False where this barrier is to be left out.
bool is_kept(Site site) {
    const Machine& m = machine();
    return site.line != m.skipped_line || text(site) != settings().skip;
}

void record(Site site) {
    std::vector<Site>& sites = machine().sites;
    const auto known = [site](Site other) { return same(site, other); };
    if (std::none_of(sites.begin(), sites.end(), known)) sites.push_back(site);
}

std::string deadlock() {
    std::string message = "threads wait for threads that never come:";
    State last = State::kReady;
    for (const Fiber& fiber : machine().fibers) {
        if (fiber.state == last) continue;
        last = fiber.state;
        message += " " + who(fiber) +
                   (last == State::kDone ? " has exited;" : " waits at " + text(fiber.site) + ";");
    }
    return message;
}

void permute(std::vector<unsigned>& order) {
    Machine& m = machine();
    std::iota(order.begin(), order.end(), 0u);
    if (settings().order == Order::kReverse) std::reverse(order.begin(), order.end());
    if (settings().order == Order::kShuffled) std::shuffle(order.begin(), order.end(), m.random);
}

void run(Fiber& fiber) {
    Machine& m = machine();
    m.current = &fiber;
    threadIdx.x = fiber.thread;
    blockIdx = m.blocks[fiber.block].index;
    enter(m.scheduler, fiber.context);
    if (!m.error.empty()) throw std::runtime_error(std::string(m.name) + ": " + m.error);
}

// Runs the lanes of one warp in turns for as long as one can go on in this round; whether any could.
bool run_warp(Fiber* lanes, const std::vector<unsigned>& order) {
    const std::uint64_t round = machine().round;
    bool progress = false;
    for (bool again = true; again;) {
        again = false;
        for (const unsigned lane : order) {
            if (lanes[lane].state != State::kReady || lanes[lane].round > round) continue;
            again = progress = true;
            run(lanes[lane]);
        }
    }
    return progress;
}

// Runs the fibers of the resident blocks (one block, or one cluster) until all have returned.
void run_resident() {
    Machine& m = machine();
    std::vector<unsigned> warps(m.warps.size());
    std::vector<unsigned> lanes(32);
    permute(lanes);
    bool progress = true;
    for (m.round = 0; progress; ++m.round) {
        permute(warps);
        progress = false;
        for (const unsigned warp : warps) progress |= run_warp(&m.fibers[warp * 32], lanes);
    }
    for (const Fiber& fiber : m.fibers) {
        if (fiber.state != State::kDone) throw std::runtime_error(std::string(m.name) + ": " + deadlock());
    }
}

}  // namespace

Settings& settings() {
    static Settings instance;
    return instance;
}

std::vector<std::string> take_barrier_sites() {
    std::vector<std::string> names;
    for (const Site site : std::exchange(machine().sites, {})) names.push_back(text(site));
    return names;
}

void sync_block(Site site) {
    Machine& m = machine();
    if (!is_kept(site)) return;
    const unsigned block = m.current->block;
    if (!arrive(m.blocks[block].meeting, site, m.threads, "__syncthreads")) return leave(State::kAtBlock);
    record(site);
    for (unsigned t = 0; t < m.threads; ++t) release(m.fibers[block * m.threads + t]);
    leave(State::kReady);
}

void sync_cluster(Site site) {
    Machine& m = machine();
    if (!is_kept(site)) return;
    const auto expected = static_cast<unsigned>(m.fibers.size());
    if (!arrive(m.cluster, site, expected, "cluster barrier")) return leave(State::kAtCluster);
    record(site);
    for (Fiber& fiber : m.fibers) release(fiber);
    leave(State::kReady);
}

const std::uint64_t* exchange(std::uint64_t mine, Site site) {
    Machine& m = machine();
    Fiber& me = *m.current;
    const unsigned first = (me.block * m.threads + me.thread) & ~31u;
    Warp& warp = m.warps[first / 32];
    std::uint64_t* values = warp.values[me.exchanges++ % 2];
    values[me.thread % 32] = mine;
    if (arrive(warp.meeting, site, 32, "warp collective")) {
        for (unsigned lane = 0; lane < 32; ++lane) m.fibers[first + lane].state = State::kReady;
    } else {
        leave(State::kAtWarp);
    }
    return values;
}

void sync_warp(Site site) {
    if (!is_kept(site)) return;
    exchange(0, site);
    if (machine().current->thread % 32 == 0) record(site);
}

void yield_thread() {
    release(*machine().current);
    leave(State::kReady);
}

unsigned char* shared_memory() { return machine().blocks[machine().current->block].shared.data(); }

unsigned char* peer_shared_memory(unsigned rank) {
    if (rank >= machine().blocks.size()) fail("no block of rank " + std::to_string(rank) + " in the cluster");
    return machine().blocks[rank].shared.data();
}

unsigned cluster_rank() { return machine().current->block; }

void run_grid(const char* name, unsigned blocks, unsigned threads, std::size_t shared_bytes, unsigned cluster,
              const std::function<void()>& body) {
    static std::mutex one_grid_at_a_time;
    const std::lock_guard<std::mutex> lock(one_grid_at_a_time);
    Machine& m = machine();
    m.name = name;
    m.threads = threads;
    m.body = &body;
    m.random.seed(settings().seed);
    const std::string& skip = settings().skip;
    m.skipped_line = skip.empty() ? 0 : std::stoi(skip.substr(skip.rfind(':') + 1));
    blockDim.x = threads;
    gridDim.x = blocks;
    m.blocks.resize(cluster);
    m.fibers.resize(std::size_t{cluster} * threads);
    m.warps.resize(m.fibers.size() / 32);
    std::vector<unsigned> order(blocks / cluster);
    permute(order);
    for (const unsigned group : order) {
        m.cluster = {};
        m.error.clear();
        for (unsigned b = 0; b < cluster; ++b) {
            m.blocks[b].index.x = group * cluster + b;
            m.blocks[b].meeting = {};
            m.blocks[b].exited = 0;
            m.blocks[b].shared.assign(shared_bytes, kPoison);
            m.blocks[b].shared.resize(shared_bytes + kGuardBytes, kGuard);
        }
        for (Warp& warp : m.warps) warp.meeting = {};
        for (std::size_t i = 0; i < m.fibers.size(); ++i) {
            Fiber& fiber = m.fibers[i];
            fiber.block = static_cast<unsigned>(i / threads);
            fiber.thread = static_cast<unsigned>(i % threads);
            fiber.state = State::kReady;
            fiber.exchanges = 0;
            fiber.round = 0;
            prepare(fiber.context, stack(i), run_body);
        }
        run_resident();
        for (const Block& block : m.blocks) {
            const auto guard = block.shared.end() - kGuardBytes;
            if (!std::all_of(guard, block.shared.end(), [](unsigned char byte) { return byte == kGuard; })) {
                throw std::runtime_error(std::string(name) + ": block " + std::to_string(block.index.x) +
                                         " wrote past its shared memory");
            }
        }
    }
}

}  // namespace emulation
