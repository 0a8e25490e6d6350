// Search runs in a worker, and a page that is opened from a folder may not start one. There the
// worker's script runs in a hidden frame instead, with the same messages.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      const inner = frame.contentWindow;
      inner.postMessage = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        this.onmessage?.(event);
      };
      const script = inner.document.createElement("script");
      this.ready = new Promise((done) => (script.onload = done));
      this.deliver = (data) => inner.dispatchEvent(new MessageEvent("message", { data }));
      script.src = new URL(url, location.href);
      inner.document.body.append(script);
    }

    postMessage(data) {
      this.ready.then(() => this.deliver(data));
    }

    terminate() {}
  };
}
