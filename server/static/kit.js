// What the views and their parts are made with, in one place to import from.

export * from "./api.js";
export * from "./dom.js";
export * from "./format.js";
export * from "./notices.js";
export * from "./session.js";
export * from "./texts.js";
