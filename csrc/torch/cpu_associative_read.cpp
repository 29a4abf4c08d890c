// associative_read and its gradients on CPU tensors.
#include <algorithm>
#include <vector>

#include "../cpu/kernels.h"
#include "cpu_tensors.h"

namespace corrigenda {
namespace {

constexpr int64_t page_rows = 8;

// The tokens that get something, by edit, openings before later ones.
struct Reads {
  std::vector<int32_t> tokens;
  std::vector<ReadTile> tiles;
  std::vector<ReadRun> runs;

  Reads(const Tensor& route, const Tensor& first, const Tensor& rows, const Tensor& pages, int64_t page_count) {
    const int32_t *edit = data<int32_t>(route), *count = data<int32_t>(rows);
    const bool* opening = data<bool>(first);
    for (int32_t t = 0; t < route.size(0); ++t) {
      if (edit[t] < 0) continue;
      STD_TORCH_CHECK(edit[t] < rows.size(0), "route must name one of ", rows.size(0), " edits or be -1, not ",
                      edit[t]);
      if (count[edit[t]] > (opening[t] ? 0 : 1)) tokens.push_back(t);
    }
    const auto key = [&](int32_t t) { return std::pair(edit[t], !opening[t]); };
    std::stable_sort(tokens.begin(), tokens.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
    for (int32_t i = 0; i < static_cast<int32_t>(tokens.size()); ++i) {
      const int32_t e = edit[tokens[i]];
      const bool opens = opening[tokens[i]];
      if (runs.empty() || runs.back().edit != e) {
        check_pages(e, count[e], pages, page_count);
        runs.push_back({e, i, i, i});
      }
      runs.back().end = i + 1;
      if (opens) runs.back().later = i + 1;
      if (tiles.empty() || tiles.back().edit != e || tiles.back().opening != opens || tiles.back().size == 4)
        tiles.push_back({e, i, 0, opens});
      ++tiles.back().size;
    }
  }

 private:
  static void check_pages(int32_t edit, int32_t rows, const Tensor& pages, int64_t page_count) {
    const int64_t used = (rows + page_rows - 1) / page_rows;
    STD_TORCH_CHECK(used <= pages.size(1), "rows must fit the pages: edit ", edit, " has ", rows, " rows and ",
                    pages.size(1), " pages");
    const int32_t* page = data<int32_t>(pages) + edit * pages.size(1);
    for (int64_t p = 0; p < used; ++p)
      STD_TORCH_CHECK(0 <= page[p] && page[p] < page_count, "pages must name one of ", page_count,
                      " pages where an edit has rows, not ", page[p]);
  }
};

struct Arguments {
  Tensor x, first, keys, values, pages, rows, route, background;
  std::optional<Tensor> scales;
  Reads reads;

  Arguments(Tensor x, Tensor first, Tensor keys, Tensor values, Tensor pages, Tensor rows, Tensor route,
            Tensor background, std::optional<Tensor> scales = std::nullopt)
      : x(x),
        first(torch::stable::contiguous(first)),
        keys(torch::stable::contiguous(keys)),
        values(torch::stable::contiguous(values)),
        pages(torch::stable::contiguous(pages)),
        rows(torch::stable::contiguous(rows)),
        route(torch::stable::contiguous(route)),
        background(torch::stable::contiguous(background)),
        scales(contiguous(scales)),
        reads(this->route, this->first, this->rows, this->pages, keys.size(0)) {}

  ReadBank bank(double beta) const {
    ReadBank bank = {};
    bank.x_type = type(x), bank.key_type = type(keys), bank.value_type = type(values);
    bank.x = x.const_data_ptr(), bank.x_row = x.stride(0), bank.x_column = x.stride(1), bank.width = x.size(1);
    bank.keys = keys.const_data_ptr(), bank.values = values.const_data_ptr(), bank.scales = data<float>(scales);
    bank.outputs = values.size(2);
    bank.pages = data<int32_t>(pages), bank.max_pages = pages.size(1), bank.rows = data<int32_t>(rows);
    bank.background = data<float>(background), bank.beta = static_cast<float>(beta);
    bank.tokens = reads.tokens.data();
    return bank;
  }
};

void associative_read_(Tensor y, Tensor x, Tensor first, Tensor keys, Tensor values, Tensor pages, Tensor rows,
                       Tensor route, Tensor background, double beta, std::optional<Tensor> scales) {
  const Arguments given(x, first, keys, values, pages, rows, route, background, scales);
  AssociativeRead op = {};
  op.bank = given.bank(beta);
  op.tiles = given.reads.tiles.data();
  op.y_type = type(y), op.y = y.mutable_data_ptr(), op.y_row = y.stride(0), op.y_column = y.stride(1);
  // A thread is worth waking for a million products: fewer take some 30 us, and beside other work the wait for a second
  // thread was 8 ms where one thread alone needs 0.05.
  const int64_t products = 8 * (x.size(1) + values.size(2));
  const int64_t grain = std::max<int64_t>(1, (1 << 20) / products);
  torch::stable::parallel_for(0, static_cast<int64_t>(given.reads.tiles.size()), grain,
                              [&](int64_t begin, int64_t end) { kernels().associative_read(op, begin, end); });
}

// Which runs read each page.
struct PageOwners {
  std::vector<int32_t> begin, owners, places;

  PageOwners(const Arguments& given) : begin(given.keys.size(0) + 1) {
    const auto for_each = [&](auto&& function) {
      for (size_t r = 0; r < given.reads.runs.size(); ++r) {
        const int32_t edit = given.reads.runs[r].edit;
        const int32_t* pages = data<int32_t>(given.pages) + edit * given.pages.size(1);
        for (int32_t p = 0; p * page_rows < data<int32_t>(given.rows)[edit]; ++p)
          function(pages[p], static_cast<int32_t>(r), p);
      }
    };
    for_each([&](int32_t page, int32_t, int32_t) { ++begin[page + 1]; });
    for (size_t p = 1; p < begin.size(); ++p) begin[p] += begin[p - 1];
    owners.resize(begin.back()), places.resize(begin.back());
    std::vector<int32_t> next(begin);
    for_each([&](int32_t page, int32_t run, int32_t place) {
      owners[next[page]] = run, places[next[page]++] = place;
    });
  }
};

std::tuple<Tensor, Tensor, Tensor> associative_read_backward(Tensor grad, Tensor x, Tensor first, Tensor keys,
                                                             Tensor values, Tensor pages, Tensor rows, Tensor route,
                                                             Tensor background, double beta,
                                                             std::vector<bool> needed) {
  const Arguments given(x, first, keys, values, pages, rows, route, background);
  const PageOwners owners(given);
  AssociativeReadBackward op = {};
  op.bank = given.bank(beta);
  op.tiles = given.reads.tiles.data(), op.runs = given.reads.runs.data();
  op.page_begin = owners.begin.data(), op.owners = owners.owners.data(), op.places = owners.places.data();
  op.grad_type = type(grad), op.grad = grad.const_data_ptr();
  op.grad_row = grad.stride(0), op.grad_column = grad.stride(1);
  for (const ReadRun& run : given.reads.runs) op.most_rows = std::max<int64_t>(op.most_rows, op.bank.rows[run.edit]);

  const auto whole = [](int64_t size) { return (size + row_multiple - 1) / row_multiple * row_multiple; };
  op.width_stride = whole(op.bank.width), op.output_stride = whole(op.bank.outputs);
  const int64_t routed = static_cast<int64_t>(given.reads.tokens.size());
  const auto buffer = [&](int64_t size) {
    return torch::stable::new_empty(x, {routed, size}, ScalarType::Float);
  };
  Tensor directions = buffer(op.width_stride), upstream = buffer(op.output_stride);
  Tensor shares = buffer(op.most_rows), dscores = buffer(op.most_rows);
  op.directions = directions.mutable_data_ptr<float>(), op.upstream = upstream.mutable_data_ptr<float>();
  op.shares = shares.mutable_data_ptr<float>(), op.dscores = dscores.mutable_data_ptr<float>();

  Tensor dx = needed[0] ? torch::stable::new_zeros(x, x.sizes()) : torch::stable::new_empty(x, {0, 0});
  Tensor dkeys = torch::stable::new_empty(keys, needed[1] ? keys.sizes().vec() : std::vector<int64_t>{0, 0, 0});
  Tensor dvalues = torch::stable::new_empty(values, needed[2] ? values.sizes().vec() : std::vector<int64_t>{0, 0, 0});
  op.dx = needed[0] ? dx.mutable_data_ptr() : nullptr;
  op.dkeys = dkeys.mutable_data_ptr(), op.dvalues = dvalues.mutable_data_ptr();
  const Kernels& run = kernels();
  torch::stable::parallel_for(0, static_cast<int64_t>(given.reads.tiles.size()), 1,
                              [&](int64_t begin, int64_t end) { run.associative_read_scores(op, begin, end); });
  if (needed[1])
    torch::stable::parallel_for(0, keys.size(0), 1,
                                [&](int64_t begin, int64_t end) { run.associative_read_dkeys(op, begin, end); });
  if (needed[2])
    torch::stable::parallel_for(0, values.size(0), 1,
                                [&](int64_t begin, int64_t end) { run.associative_read_dvalues(op, begin, end); });
  return {dx, dkeys, dvalues};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CPU, m) {
  m.impl("associative_read", TORCH_BOX(&OnCopy<&associative_read_>::run));
  m.impl("associative_read_", TORCH_BOX(&associative_read_));
  m.impl("associative_read_backward", TORCH_BOX(&associative_read_backward));
}

}  // namespace corrigenda
