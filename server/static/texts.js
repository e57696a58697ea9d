// All words of the page, in one place: another language is another file like this one.
// A text with values in it is a function. Each view has a part of its own.

export const texts = {
  version: "Version of lm",
  close: "Close",
  retry: "Try again",
  hint: "Hint:",
  skip: "Skip to content",
  views: { chat: "Chat", models: "Models", fit: "Fit", machine: "Machine" },
  errors: {
    unreachable: "The daemon does not answer.",
    unreachableHint: "`lm serve` starts it; this page goes on as soon as it answers.",
    broken: "The answer broke off.",
    brokenHint: "Ask again; the log of the daemon tells why.",
    status: "The daemon answered with status",
  },
  login: {
    title: "A key, please",
    why: "This daemon answers to keys. Whoever runs it makes one with `lm key create`.",
    key: "Key",
    enter: "Enter",
    leave: "Forget key",
    kept: "The key stays in this tab and ends with it.",
    wrong: "The daemon does not take this key.",
    notFor: (has, needs) => `Your key has the role \`${has}\`, and this view takes \`${needs}\`.`,
    roles: {
      infer: "May ask models.",
      operator: "May ask models, bring them in and remove them.",
      admin: "May do everything.",
    },
  },
};
