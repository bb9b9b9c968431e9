// The rows of isas.def at run time: their names, which of them can run here, and their kernels.
#include "isa.hpp"

#include <cstdlib>

#include "../common/check.hpp"
#include "kernels.hpp"
#include "probes.hpp"

namespace slimfast {

#define ISA(name, source, base, bytes, registers, probe, flags) \
    namespace name {                                            \
    extern const IsaKernels kOwn;                               \
    }
#include "isas.def"

namespace {

struct Row {
    const char* name;
    const IsaKernels& base;
    const IsaKernels& own;
    bool (*probe)();
};

// In the order of Isa.
const Row kRows[] = {
#define ISA(name, source, base, bytes, registers, probe, flags) {#name, base::kOwn, name::kOwn, probe},
#include "isas.def"
};

bool is_available(const Row& row) {
    const bool compiled = row.base.all && (row.own.all || row.own.bf16);
    return compiled && row.probe();
}

std::string joined_names() {
    std::string all;
    for (Isa isa : available_isas()) all += (all.empty() ? "" : ", ") + std::string(name(isa));
    return all;
}

Isa lookup(const std::string& wanted, const char* source) {
    for (Isa isa : available_isas()) {
        if (wanted == name(isa)) return isa;
    }
    require(false, source, ": expected one of ", joined_names(), " on this machine, got '", wanted, "'");
    return Isa::baseline;
}

}  // namespace

const char* name(Isa isa) { return kRows[static_cast<int>(isa)].name; }

const std::vector<Isa>& available_isas() {
    static const std::vector<Isa> available = [] {
        std::vector<Isa> isas;
        for (const Row& row : kRows) {
            if (is_available(row)) isas.push_back(static_cast<Isa>(&row - kRows));
        }
        return isas;
    }();
    return available;
}

Isa default_isa() {
    static const std::string forced = [] {
        const char* value = std::getenv("SLIMFAST_ISA");
        return std::string(value ? value : "");
    }();
    return forced.empty() ? available_isas().back() : lookup(forced, "SLIMFAST_ISA");
}

Isa find_isa(const std::string& wanted) { return wanted.empty() ? default_isa() : lookup(wanted, "isa"); }

const Kernels& kernels(Isa isa) {
    static const std::vector<Kernels> tables = [] {
        std::vector<Kernels> all;
        for (const Row& row : kRows) {
            all.push_back(row.base.all ? *row.base.all : Kernels{});
            all.back().covariance.bf16 = row.own.bf16;
        }
        return all;
    }();
    return tables[static_cast<int>(isa)];
}

}  // namespace slimfast
