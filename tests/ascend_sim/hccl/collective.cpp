// Moves the data of a collective through the slots, in rounds: every rank fills its slot, all meet, every rank reads what
// concerns it. A slot has two halves used in turn, so one meeting a round is enough: a rank that arrives at round n + 1
// has read round n, and round n + 2 is the next to write where round n was.
#include "collective.h"

#include <algorithm>
#include <cstring>

#include "agreement.h"
#include "ascend_sim/runtime.h"
#include "reduce.h"

namespace ascend_sim::hccl {
namespace {

// The part [begin, begin + chunk) of a span, empty behind its end.
Span part(const Span& span, uint64_t begin, uint64_t chunk) {
  if (begin >= span.bytes) return {};
  return {static_cast<char*>(kernel_view(span.pointer)) + begin, std::min(chunk, span.bytes - begin)};
}

class Mover {
 public:
  Mover(Communicator& communicator, const Collective& what)
      : communicator_(communicator), segment_(communicator.segment()), what_(what) {
    uint64_t room = segment_.header().slot_bytes;
    chunk_ = (what.personal ? room / communicator.rank_count() : room) / 64 * 64;
  }

  uint64_t chunk() const { return chunk_; }

  void write(uint64_t round, uint64_t begin) {
    uint8_t* slot = segment_.slot(communicator_.rank(), round);
    for (size_t d = 0; d < what_.outgoing.size(); d++) {
      Span piece = part(what_.outgoing[d], begin, chunk_);
      if (piece.bytes != 0) std::memcpy(slot + d * chunk_, piece.pointer, piece.bytes);
    }
  }

  void read(uint64_t round, uint64_t begin) {
    if (what_.incoming.empty()) return;
    uint64_t offset = what_.personal ? communicator_.rank() * chunk_ : 0;
    bool reduces = what_.operation.reduce >= 0;
    for (uint32_t r = 0; r < communicator_.rank_count(); r++) {
      Span piece = part(what_.incoming[reduces ? 0 : r], begin, chunk_);
      if (piece.bytes == 0) continue;
      const uint8_t* from = segment_.slot(r, round) + offset;
      DataType type = static_cast<DataType>(what_.operation.data_type);
      if (!reduces || r == 0)
        std::memcpy(piece.pointer, from, piece.bytes);
      else
        reduce_into(piece.pointer, from, piece.bytes / element_bytes(type), type,
                    static_cast<ReduceOp>(what_.operation.reduce));
    }
  }

 private:
  Communicator& communicator_;
  Segment& segment_;
  const Collective& what_;
  uint64_t chunk_;
};

void publish(Communicator& communicator, const Collective& what) {
  Segment& segment = communicator.segment();
  uint64_t number = what.operation.number;
  segment.operation(communicator.rank(), number) = what.operation;
  std::copy(what.send_counts.begin(), what.send_counts.end(), segment.send_counts(communicator.rank(), number));
  std::copy(what.receive_counts.begin(), what.receive_counts.end(),
            segment.receive_counts(communicator.rank(), number));
}

}  // namespace

void run_collective(Communicator& communicator, const Collective& what) {
  communicator.begin(describe(what.operation, what.send_counts.data(), what.receive_counts.data()));
  publish(communicator, what);
  Mover mover(communicator, what);
  mover.write(communicator.round(), 0);      // with the first meeting, so that a small message needs only one
  uint64_t round = communicator.arrive(true);
  communicator.wait_for_round(round);
  if (std::string difference = find_difference(communicator, what.operation.number); !difference.empty())
    communicator.fail_all(kInternal, kStreamInternalError, difference);
  uint64_t longest = longest_transfer(communicator, what.operation.number);
  mover.read(round, 0);
  for (uint64_t begin = mover.chunk(); begin < longest; begin += mover.chunk()) {
    mover.write(communicator.round(), begin);
    round = communicator.arrive(false);
    communicator.wait_for_round(round);
    mover.read(round, begin);
  }
  communicator.end();
}

}  // namespace ascend_sim::hccl
