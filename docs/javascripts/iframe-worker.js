// Search without a server: browsers give pages of a folder (file:) no Worker, so its script runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      this.loaded = new Promise((resolve) => {
        const answer = (data) => {
          const message = new MessageEvent("message", { data });
          this.dispatchEvent(message);
          if (this.onmessage) this.onmessage(message);
        };
        const page = this.inside.document;
        page.open();
        page.write("<!doctype html><body></body>");
        page.close();
        this.inside.postMessage = answer;
        this.inside.importScripts = () => {};
        const script = page.createElement("script");
        script.src = new URL(url, location.href).href;
        script.onload = resolve;
        page.body.appendChild(script);
      });
    }
    postMessage(data) {
      this.loaded.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })));
    }
    terminate() {}
  };
}
