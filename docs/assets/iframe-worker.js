// Browsers start no worker for a page from file://. There, an invisible frame does a worker's work: search needs one.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.scope = frame.contentWindow;
      this.scope.postMessage = (data) => this.deliver(this, data);
      this.scope.importScripts = (...urls) => urls.reduce((last, next) => last.then(() => this.load(next)), this.ready);
      this.ready = this.load(url);
    }

    // Once the worker's own script has run, as a real worker queues what comes before.
    postMessage(data) {
      this.ready.then(() => this.deliver(this.scope, data));
    }

    terminate() {
      this.scope.frameElement.remove();
    }

    deliver(target, data) {
      const event = new MessageEvent("message", { data });
      target.dispatchEvent(event);
      target.onmessage?.(event);
    }

    load(url) {
      return new Promise((resolve, reject) => {
        const script = this.scope.document.createElement("script");
        script.src = url;
        script.onload = () => resolve();
        script.onerror = () => reject(new Error(`${url} cannot be loaded.`));
        this.scope.document.head.append(script);
      });
    }
  };
}
