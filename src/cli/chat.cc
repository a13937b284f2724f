#include "infer/chat.h"

#include "base/error.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/line_reader.h"
#include "cli/loading.h"
#include "cli/output.h"
#include "cli/sampling_flags.h"
#include "cli/signals.h"

namespace weft::cli {
namespace {

struct ChatFlags {
  std::string model, system, load, chat_template, variables, dtype = "fp32";
  int64_t tokens = 1024, chunk = 512;
  SamplingFlags sampling;
  std::vector<std::string> stop;
  void flags(Flags& f) {
    f.argument("model", model, "model directory");
    f("--system", system, "what the system message says");
    f("--load", load, "go on with a conversation that /save wrote");
    f("--template", chat_template, "name of the chat template, where the model has several");
    f("--variables", variables, "more for the template, as JSON: '{\"enable_thinking\": false}'");
    f("--tokens,-n", tokens, "most tokens of an answer");
    sampling.flags(f);
    f("--stop", stop, "end an answer before this text; may be given several times");
    f("--chunk", chunk, "tokens of the prompt in one call");
    f("--dtype", dtype, "fp32, bf16, fp16 or fp64");
  }
};

constexpr const char* kHelp =
    "/reset          forget what was said\n"
    "/system TEXT    another system message, from the next turn on; without TEXT none\n"
    "/save FOLDER    write the conversation and the model's state\n"
    "/load FOLDER    go on with a saved one\n"
    "/help           this list\n"
    "/exit           end, as Ctrl-D does\n"
    "A line that ends in \\ goes on in the next one; between two lines \"\"\" all lines are one message.\n"
    "Ctrl-C stops an answer. A message that begins with // begins with /.\n";

nlohmann::ordered_json variables_of(const std::string& text) {
  if (text.empty()) return nlohmann::ordered_json::object();
  auto json = nlohmann::ordered_json::parse(text, nullptr, false);
  require(json.is_object(), "--variables {}: expected a JSON object", text);
  return json;
}

ChatOptions options_of(const ChatFlags& flags, const LoadedModel& loaded) {
  ChatOptions options;
  options.sampling = flags.sampling.options(loaded.generation);
  options.max_tokens = flags.tokens;
  options.stop = flags.stop;
  options.end_ids = loaded.generation.end_ids;
  options.prefill_chunk = flags.chunk;
  options.system = flags.system;
  options.variables = variables_of(flags.variables);
  return options;
}

// One conversation on the command line.
class Talk {
 public:
  Talk(const ChatFlags& flags, const Session& session, const LoadedModel& loaded)
      : session_(session),
        plain_(ChatPrompt(loaded.chat, flags.chat_template).plain()),
        chat_(*loaded.model, tokenizer_of(loaded), ChatPrompt(loaded.chat, flags.chat_template),
              with_signals(options_of(flags, loaded))) {
    if (!flags.load.empty()) load(flags.load);
  }

  int run() {
    if (plain_) say("this model has no chat template: messages are written as User: and Assistant:");
    if (reader_.interactive()) say("/help lists the commands; Ctrl-D ends");
    while (const auto message = reader_.message()) {
      if (message->empty()) continue;
      const bool command = message->starts_with('/') && !message->starts_with("//");
      if (!command) {
        if (const int code = turn(message->starts_with("//") ? message->substr(1) : *message)) return code;
      } else if (!obey(*message)) {
        break;
      }
    }
    return failed_ && !reader_.interactive() ? 1 : 0;
  }

 private:
  ChatOptions with_signals(ChatOptions options) {
    options.cancelled = [this] { return signals_ && signals_->received(); };
    return options;
  }

  void say(const std::string& text) const {
    if (!session_.quiet) note(text);
  }

  // An exit code, or 0 to go on.
  int turn(const std::string& text) {
    ChatReply reply;
    int code = 0;
    signals_.emplace();
    try {
      reply = chat_.say(text, [](std::string_view piece) { write_output(piece, true); });
      write_output("\n", true);
      code = signals_->exit_code();
    } catch (const InputError& error) {
      signals_.reset();
      return complain(error), 0;
    }
    signals_.reset();
    report(reply);
    const bool goes_on = code == 0 || (reader_.interactive() && code == 130);  // Ctrl-C ends the answer only
    return goes_on ? 0 : code;
  }

  void report(const ChatReply& reply) const {
    say(
        fmt::format("{} tokens, {:.1f} tokens/s; prompt: {} tokens read, {} reused; first token after {:.3f} "
                    "s; state {}; "
                    "ended by {}",
                    reply.ids.size(), reply.tokens_per_second(), reply.read, reply.reused,
                    reply.first_token_s, bytes_text(reply.state_bytes), stop_reason_name(reply.reason)));
  }

  void complain(const Error& error) {
    failed_ = true;
    note(std::string("weft: error: ") + error.what());
  }

  void load(const std::string& folder) {
    chat_.load(folder);
    say(fmt::format("{} messages, {} tokens in the state", chat_.messages().size(), chat_.seen_tokens()));
  }

  // False to end.
  bool obey(const std::string& line) {
    const size_t space = line.find(' ');
    const auto name = line.substr(1, space == std::string::npos ? space : space - 1),
               rest = space == std::string::npos ? "" : line.substr(space + 1);
    try {
      if (name == "exit" || name == "quit") return false;
      if (name == "help") {
        note(kHelp);
      } else if (name == "reset") {
        chat_.reset();
        say("forgotten");
      } else if (name == "system") {
        chat_.set_system(rest);
      } else if (name == "save" || name == "load") {
        require(!rest.empty(), "/{} needs the name of a folder", name);
        if (name == "load") {
          load(rest);
        } else {
          chat_.save(rest);
          say("saved");
        }
      } else {
        const std::vector<std::string> known = {"exit", "help", "load", "reset", "save", "system"};
        const auto guess = nearest_word(name, known);
        throw InputError(fmt::format("/{} is no command{}; /help lists them", name,
                                     guess.empty() ? "" : ", did you mean /" + guess + "?"));
      }
    } catch (const InputError& error) {
      complain(error);
    }
    return true;
  }

  const Session& session_;
  bool plain_;
  std::optional<StopSignals> signals_;  // while an answer is written
  Chat chat_;
  LineReader reader_;
  bool failed_ = false;
};

int run(const ChatFlags& flags, const Session& session) {
  const auto loaded = open_model(flags.model, flags.dtype, session);
  return Talk(flags, session, loaded).run();
}

const Command register_chat{"chat", "talk with a model, line by line", run};

}  // namespace
}  // namespace weft::cli
