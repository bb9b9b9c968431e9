// Arguments that only a wrong caller inside the package can get wrong: checked once, told with their values.
#pragma once

#include <sstream>
#include <stdexcept>

namespace slimfast {

// Throws std::invalid_argument with all `parts` joined when `holds` is false.
template <class... Parts>
void require(bool holds, const Parts&... parts) {
    if (holds) return;
    std::ostringstream message;
    (message << ... << parts);
    throw std::invalid_argument(message.str());
}

}  // namespace slimfast
